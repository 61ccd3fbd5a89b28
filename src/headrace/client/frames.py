"""Frames of pandas, polars and Arrow: which of them a caller uses, and predictions in the same.

A library is told by where the class of the caller's rows comes from, and imported only to make a frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import InvalidInput

Frames = Literal["pandas", "polars", "pyarrow"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What rows came in."""

    library: Frames
    index: Any = None
    """A pandas index, which predictions keep."""


def origin(rows: object) -> Origin | None:
    """The library of a frame, or of the first frame in a dict of them; None for rows in no frame."""
    for value in (rows, *(rows.values() if isinstance(rows, Mapping) else ())):
        library = type(value).__module__.partition(".")[0]
        if library == "pandas":
            return Origin("pandas", getattr(value, "index", None))
        if library == "polars":
            return Origin("polars")
        if library == "pyarrow":
            return Origin("pyarrow")
    return None


def frame(outputs: Mapping[str, NDArray[Any]], to: Origin) -> Any:
    """Outputs as a frame with one row per row of the request.

    An output of one value per row is a column of its name; one of several, `probabilities` say, is the columns
    ``probabilities_0``, ``probabilities_1`` ...; text is `str`.

    Raises:
        InvalidInput: the library is none of ours or not installed, or the outputs are no table.
    """
    if to.library not in get_args(Frames):
        raise InvalidInput(f"library: {to.library!r}, expected {', '.join(get_args(Frames))}", field="library")
    columns = _columns(outputs)
    try:
        library: Any = import_module(to.library)
    except ImportError:
        raise InvalidInput(f"library: {to.library} is not installed", field="library") from None
    if to.library == "pandas":
        index = to.index if to.index is not None and len(to.index) == len(next(iter(columns.values()))) else None
        return library.DataFrame(columns, index=index)
    return library.DataFrame(columns) if to.library == "polars" else library.table(columns)


def _columns(outputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, array in outputs.items():
        if array.ndim not in (1, 2):
            shape = list(array.shape)
            raise InvalidInput(f"output {name!r} of shape {shape} is no column: take .outputs[{name!r}]", field=name)
        if array.dtype == object:
            array = np.array([_text(item) for item in array.reshape(-1)], object).reshape(array.shape)
        if array.ndim == 1 or array.shape[1] == 1:
            columns[name] = array.reshape(-1)
        else:
            columns |= {f"{name}_{k}": np.ascontiguousarray(array[:, k]) for k in range(array.shape[1])}
    if len({len(column) for column in columns.values()}) > 1:
        raise InvalidInput("the outputs have different numbers of rows: take .outputs", field="outputs")
    return columns


def _text(item: Any) -> Any:
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else item
