"""Engines: one adapter per model format behind the port."""
