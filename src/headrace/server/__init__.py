"""The inference server (replica): queue -> dynamic batch -> engine -> reply."""
