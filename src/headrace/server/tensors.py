"""One tensor in a body: JSON data or the binary extension's bytes to an array, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import InvalidInput
from headrace.core.schema import DATATYPES

Array = NDArray[Any]
_encode = msgspec.json.Encoder().encode
_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
"""Kind of dtype -> what its values are in JSON."""


def from_binary(data: memoryview, shape: Sequence[int], datatype: str, size: int, where: str) -> Array:
    """A tensor of the binary extension: little-endian, row-major; BYTES with 4-byte lengths. Raises InvalidInput."""
    if datatype != "BYTES":
        dtype = DATATYPES[datatype]
        if len(data) != size * dtype.itemsize:
            raise InvalidInput(
                f"{where}: {len(data)} bytes of data, shape {list(shape)} needs {size * dtype.itemsize}", field=where
            )
        return np.frombuffer(data, dtype).reshape(shape)
    # Each item has a length at least: what a shape announces is not allocated before the body bears it out.
    items = np.empty(size if 4 * size <= len(data) else 0, object)
    at = k = 0
    while at + 4 <= len(data) and k < len(items):
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if at + length > len(data):
            break
        items[k] = bytes(data[at : at + length])
        at += length
        k += 1
    if k != size or at != len(data):
        raise InvalidInput(f"{where}: BYTES data does not hold exactly {size} length-prefixed items", field=where)
    return items.reshape(shape)


def to_binary(array: Array, datatype: str) -> bytes:
    """The reverse of `from_binary`."""
    if datatype != "BYTES":
        return array.tobytes()
    items = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
    return b"".join([len(item).to_bytes(4, "little") + item for item in items])


def from_json(data: object, shape: Sequence[int], datatype: str, size: int, where: str) -> Array:
    """JSON data, flat or nested, as an array of the datatype. Raises InvalidInput."""
    values = _flatten(data, where)
    if len(values) != size:
        raise InvalidInput(f"{where}: {len(values)} values, shape {list(shape)} needs {size}", field=f"{where}.data")
    if datatype == "BYTES":
        array = np.empty(size, object)
        for k, value in enumerate(values):
            if not isinstance(value, str):
                raise InvalidInput(f"{where}: item {k} is no text, BYTES in JSON are strings", field=f"{where}.data")
            array[k] = value.encode()
        return array.reshape(shape)
    dtype = DATATYPES[datatype]
    wanted = _JSON_TYPES[dtype.kind]
    if dtype.kind == "f" and None in values:
        values = [math.nan if value is None else value for value in values]
    if not wanted.issuperset(map(type, values)):
        k = next(k for k, value in enumerate(values) if type(value) not in wanted)
        raise InvalidInput(f"{where}: item {k} is {_json_name(values[k])}, expected {datatype}", field=f"{where}.data")
    try:
        with np.errstate(over="ignore"):
            return np.array(values, np.float64 if dtype.kind == "f" else dtype).astype(dtype).reshape(shape)
    except (OverflowError, ValueError):
        raise InvalidInput(f"{where}: a value does not fit {datatype}", field=f"{where}.data") from None


def _flatten(data: object, where: str) -> list[Any]:
    """Nested lists of equal lengths as one flat list."""
    if not isinstance(data, list):
        raise InvalidInput(f"{where}: data is missing, expected a list of values", field=f"{where}.data")
    while data and isinstance(data[0], list):
        length = len(data[0])
        if any(not isinstance(item, list) or len(item) != length for item in data):
            raise InvalidInput(f"{where}: data is not a regular array", field=f"{where}.data")
        data = [value for item in data for value in item]
    if any(isinstance(value, list) for value in data):
        raise InvalidInput(f"{where}: data is not a regular array", field=f"{where}.data")
    return data


def _json_name(value: object) -> str:
    return {str: "a string", bool: "a boolean", dict: "an object", float: "a number with a fraction"}.get(
        type(value), "null" if value is None else "a number"
    )


def to_json(array: Array, datatype: str) -> bytes:
    """The values as a flat JSON list. Raises InvalidInput for BYTES that are no text."""
    flat = array.reshape(-1)
    if datatype != "BYTES":
        return _encode(flat.tolist())
    texts = []
    for item in flat:
        raw = item if isinstance(item, bytes) else str(item).encode()
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError:
            raise InvalidInput("outputs: holds bytes that are no text; ask for binary_data", field="outputs") from None
    return _encode(texts)
