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
    "Client": "headrace.client.client",
    "serve": "headrace.client.serve",
    "push": "headrace.client.serve",
}
__all__ = ["Client", "__version__", "push", "serve"]


def __getattr__(name: str) -> Any:
    """Imported when first used: the processes of the platform import this package too, and need none of it."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
