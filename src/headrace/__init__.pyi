"""What type checkers see of the package: its names are imported when first used (see `__init__.py`)."""

from headrace.client.client import AsyncClient, Client
from headrace.client.serve import Endpoint, push, serve
from headrace.client.tensors import Prediction
from headrace.core import errors

__all__ = ["AsyncClient", "Client", "Endpoint", "Prediction", "__version__", "errors", "push", "serve"]
__version__: str
