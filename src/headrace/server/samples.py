"""Samples of rows: Parquet, CSV and NPZ files read, and their columns brought into the shape of a model's inputs.

Read in the process that examines artifacts, never in the control plane: a file may be anything.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from headrace.core.errors import Unprocessable
from headrace.core.names import did_you_mean
from headrace.core.schema import DATATYPES, Signature, TensorSpec
from headrace.server.engines.port import Array

VALUES_MAX = 100_000_000
"""Values that a sample may have; its rows times its columns, where those are plain."""
NPZ_MAX = 4 << 30
"""Bytes that an NPZ file may have when unpacked."""
SETTINGS: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "threads": 1,
    "memory_limit": "2GB",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """A sample as a model takes it."""

    inputs: tuple[Array, ...]
    """One per input of the signature, in its dtype and with its shape; what is missing is 0, or empty text."""
    missing: tuple[Array, ...]
    """Of the inputs' shapes: where they have null or NaN."""
    names: tuple[tuple[str, ...], ...]
    """For people: of the columns of each input's row."""
    labels: Array | None

    def __len__(self) -> int:
        return len(self.inputs[0])


def read(path: Path, signature: Signature, label: str | None, field: str) -> Rows:
    """Read a sample.

    Args:
        path: the file.
        signature: of the model.
        label: column that is no input; None where there is none.
        field: what errors name.

    Raises:
        Unprocessable: no such file, or not the model's columns; names them.
    """
    try:
        columns = _columns(path, field)
    except (duckdb.Error, ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        reason = str(error).replace(str(path), "it").partition("\n")[0][:300]
        raise Unprocessable(f"{field}: neither Parquet, CSV nor NPZ: {reason}", field=field) from None
    labels = None
    if label is not None:
        if label not in columns:
            hint = did_you_mean(label, columns) or f"its columns are {_few(columns)}"
            raise Unprocessable(f"{field}: no column {label!r} for the label", field=field, hint=hint)
        labels = columns.pop(label)
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise Unprocessable(f"{field}: it has no rows, or columns of different lengths", field=field)
    if sum(column.size for column in columns.values()) > VALUES_MAX:
        raise Unprocessable(f"{field}: more than {VALUES_MAX:,} values", field=field, hint="draw a sample of its rows")
    found = [_tensor(spec, chosen, field) for spec, chosen in _choose(columns, signature.inputs, field)]
    return Rows(tuple(f[0] for f in found), tuple(f[1] for f in found), tuple(f[2] for f in found), labels)


# ------------------------------------------------------------------------------------------------ files
def _columns(path: Path, field: str) -> dict[str, Array]:
    """Columns by name, in the file's order. Raises what the libraries raise."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(b"PK\x03\x04"):
        return _npz(path, field)
    if start.startswith(b"PAR1"):
        return _query("SELECT * FROM read_parquet(?)", path)
    if b"\0" in start or not start:
        raise ValueError("the file is empty" if not start else "its first bytes are of no known kind")
    # All as text: a guess of types would take the zeros off 007.
    return _query("SELECT * FROM read_csv(?, header = true, all_varchar = true, nullstr = '')", path)


def _query(query: str, path: Path) -> dict[str, Array]:
    with duckdb.connect(":memory:", config=SETTINGS) as connection:
        found = connection.execute(query, [str(path)])
        names = [column[0] for column in found.description]
        arrays = found.fetchnumpy()
    return {name: _plain(arrays[name]) for name in names}


def _plain(array: Any) -> Array:
    """A masked array with what is missing as NaN (of floats), or None."""
    if isinstance(array, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(array)
        if not mask.any():
            return np.asarray(array.data)
        kind = np.float64 if array.dtype.kind == "f" else object
        plain = array.data.astype(kind)
        plain[mask] = np.nan if kind is np.float64 else None
        return plain
    return np.asarray(array)


def _npz(path: Path, field: str) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        if sum(item.file_size for item in archive.infolist()) > NPZ_MAX:
            raise Unprocessable(f"{field}: more than {NPZ_MAX >> 30} GiB unpacked", field=field)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: np.atleast_1d(arrays[name]) for name in arrays.files}


# ------------------------------------------------------------------------------------------------ columns to inputs
def _choose(
    columns: dict[str, Array], inputs: Sequence[TensorSpec], field: str
) -> list[tuple[TensorSpec, dict[str, Array]]]:
    """The columns of each input: one of its name, or ``name_0``, ``name_1`` ...; all in their order for the only input.

    Raises:
        Unprocessable: columns are missing, or of no input.
    """
    chosen: list[tuple[TensorSpec, dict[str, Array]]] = []
    missing: list[str] = []
    for spec in inputs:
        width = prod(spec.shape[1:]) if len(spec.shape) == 2 else 1
        parts = [f"{spec.name}_{k}" for k in range(width)]
        if spec.name in columns:
            chosen.append((spec, {spec.name: columns[spec.name]}))
        elif width > 1 and all(part in columns for part in parts):
            chosen.append((spec, {part: columns[part] for part in parts}))
        else:
            missing.append(spec.name)
    if missing and len(inputs) == 1:
        spec = inputs[0]
        width = spec.shape[1] if len(spec.shape) == 2 else 1
        if width in (-1, len(columns)):
            return [(spec, columns)]
        count = "1 column" if len(columns) == 1 else f"{len(columns)} columns"
        hint = f"its columns are {_few(columns)}; name the label's with label"
        text = f"{field}: {count}, expected {width} for input {spec.name!r}, or one called {spec.name!r}"
        raise Unprocessable(text, field=field, hint=hint)
    extra = columns.keys() - {name for _, found in chosen for name in found}
    if missing or extra:
        faults = [f"no columns for input {_few(missing)}"] if missing else []
        faults += [f"columns of no input: {_few(sorted(extra))}"] if extra else []
        takes = f"the model takes {_few([spec.name for spec in inputs])}; name the label's column with label"
        raise Unprocessable(f"{field}: {'; '.join(faults)}", field=field, hint=takes)
    return chosen


def _tensor(spec: TensorSpec, columns: dict[str, Array], field: str) -> tuple[Array, Array, tuple[str, ...]]:
    """An input's array, where it is missing, and the names of its row's columns."""
    numbers = [_typed(column, spec, name, field) for name, column in columns.items()]
    array, missing = numbers[0]
    if len(numbers) > 1:
        if any(values.ndim > 1 for values, _ in numbers):
            raise Unprocessable(f"{field}: several columns, of which one has several values a row", field=field)
        array = np.stack([values for values, _ in numbers], 1)
        missing = np.stack([mask for _, mask in numbers], 1)
    shape = (len(array), *spec.shape[1:])
    if shape.count(-1) <= 1 and -1 not in shape[:1] and prod(array.shape) == abs(prod(shape)):
        array, missing = array.reshape(shape), missing.reshape(shape)  # lists are flat, or nested as they like
    fits = array.ndim == len(shape) and all(want in (-1, have) for have, want in zip(array.shape, shape, strict=True))
    if not fits:
        text = f"{field}: {_few(columns)}: shape {list(array.shape)}, expected {list(spec.shape)} (-1: any)"
        raise Unprocessable(text, field=field)
    width = prod(array.shape[1:])
    names = tuple(columns) if len(columns) == width else tuple(f"{spec.name}[{k}]" for k in range(width))
    return np.ascontiguousarray(array), missing, names if width > 1 or len(columns) > 1 else tuple(columns)


def _typed(column: Array, spec: TensorSpec, name: str, field: str) -> tuple[Array, Array]:
    """A column in the input's dtype, and where it is missing. Raises Unprocessable naming column and row."""
    if column.dtype == object and len(column) and isinstance(column[0], list | np.ndarray):
        sizes = {np.shape(item) for item in column}
        if len(sizes) > 1:
            raise Unprocessable(f"{field}: column {name!r} has lists of different lengths", field=field)
        cells = [_typed(np.asarray(item).reshape(-1), spec, name, field) for item in column]
        return np.stack([cell[0] for cell in cells]), np.stack([cell[1] for cell in cells])
    dtype = DATATYPES[spec.datatype]
    if column.dtype.kind in "biuf" and dtype.kind != "O":
        missing = np.isnan(column) if column.dtype.kind == "f" else np.zeros(column.shape, bool)
        with np.errstate(all="ignore"):
            array = np.where(missing, 0, column).astype(dtype)
            changed = array != column if dtype.kind in "biu" else np.isinf(array) & ~np.isinf(column)
        wrong = np.flatnonzero((changed & ~missing).reshape(len(column), -1).any(1))
        if len(wrong):
            raise _wrong(column, int(wrong[0]), spec, name, field)
        return array, missing
    items = column.reshape(-1).tolist()
    gaps = np.array([item is None or item != item for item in items], bool)
    made = np.zeros(len(items), dtype)
    if dtype.kind == "O":
        made[:] = [b"" if gap else _bytes(item) for item, gap in zip(items, gaps, strict=True)]
        return made.reshape(column.shape), gaps.reshape(column.shape)
    for k, item in enumerate(items):
        if not gaps[k]:
            try:
                made[k] = _number(item, dtype)
            except (TypeError, ValueError, OverflowError, KeyError):
                raise _wrong(column, k, spec, name, field) from None
    if dtype.kind == "f":
        gaps |= np.isnan(made)  # a text that says nan
        made[gaps] = 0
    return made.reshape(column.shape), gaps.reshape(column.shape)


def _wrong(column: Array, row: int, spec: TensorSpec, name: str, field: str) -> Unprocessable:
    given = repr(column[row].item() if isinstance(column[row], np.generic) else column[row])[:60]
    return Unprocessable(f"{field}: column {name!r}, row {row + 1}: {given} is no {spec.datatype}", field=field)


def _number(item: object, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "f":
        return float(item)  # type: ignore[arg-type]
    text = str(item).strip().lower()
    if dtype.kind == "b":
        return {"true": True, "false": False, "1": True, "0": False}[text]
    return int(text)


def _bytes(item: object) -> bytes:
    return bytes(item) if isinstance(item, bytes | bytearray | memoryview) else str(item).encode()


def _few(names: Sequence[str] | dict[str, Array]) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:8])) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
