"""Headrace: an ML model-serving platform."""

__version__ = "0.1.0"
