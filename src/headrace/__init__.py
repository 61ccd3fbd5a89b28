"""Headrace: an ML model-serving platform.

>>> import headrace
>>> endpoint = headrace.serve(model)          # doctest: +SKIP
>>> endpoint.predict(rows).array              # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_HOMES = {
    "AsyncClient": "headrace.client.client",
    "Client": "headrace.client.client",
    "Endpoint": "headrace.client.serve",
    "Prediction": "headrace.client.tensors",
    "push": "headrace.client.serve",
    "serve": "headrace.client.serve",
}
__all__ = ["AsyncClient", "Client", "Endpoint", "Prediction", "__version__", "errors", "push", "serve"]


def __getattr__(name: str) -> Any:
    """Imported when first used: the processes of the platform import this package too, and need none of it."""
    if name == "errors":
        return import_module("headrace.core.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
