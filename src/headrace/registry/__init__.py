"""Model registry: models, immutable versions, content-addressed artifacts."""
