"""Measurements of the platform beside its rivals. Each bench prints one JSON object as its last line."""
