"""Importers: what other tools keep models in, as artifacts and what a registration says of them."""
