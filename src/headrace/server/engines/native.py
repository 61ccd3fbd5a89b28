"""The C libraries of engines, called without the Python packages that carry them.

Those packages import scikit-learn, which imports SciPy: 90 MB of every replica for what prediction does not need.
What is called is each library's documented C API, which is what its package calls too.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")


class Library:
    """A loaded C library whose functions return 0, or else leave the reason with another function.

    Args:
        path: the shared object.
        last_error: the function that tells the reason.
    """

    def __init__(self, path: Path, last_error: str) -> None:
        self.c = ctypes.CDLL(str(path))
        self._last_error = self.c[last_error]
        self._last_error.restype = ctypes.c_char_p

    def check(self, failed: int) -> None:
        """Raise RuntimeError with the library's reason when a call returned anything but 0."""
        if failed:
            raise RuntimeError(self.reason())

    def reason(self) -> str:
        """What the library says of the last call that failed, in this thread."""
        text: bytes | None = self._last_error()
        return (text or b"no reason given").decode(errors="replace")

    def number(self, function: str, handle: ctypes.c_void_p, kind: type[Any]) -> int:
        """What ``function(handle, &number)`` writes; `kind` is the number's C type."""
        value = kind()
        self.check(self.c[function](handle, ctypes.byref(value)))
        return int(value.value)


@cache
def library(package: str, name: str, last_error: str) -> Library:
    """The library that a wheel carries in its folder `lib`, loaded once per process.

    Raises:
        ImportError: the package, or the library in it, is not there, or one that it needs itself.
    """
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ImportError(f"the package {package} is not installed")
    file = f"{name}.{_SUFFIX}"
    places = (Path(found.origin).parent / "lib", Path(sys.prefix) / "lib")  # a wheel's, a conda environment's
    path = next((place / file for place in places if (place / file).is_file()), None)
    if path is None:
        raise ImportError(f"the package {package} carries no {file}")
    try:
        return Library(path, last_error)
    except OSError as error:
        raise ImportError(f"{file} cannot be loaded: {error}") from None
