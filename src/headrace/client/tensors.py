"""Inference requests and replies in the Open Inference Protocol's binary form. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.client.frames import Frames, Origin, frame
from headrace.core.errors import InvalidInput
from headrace.core.schema import DATATYPES, Signature, TensorSpec

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer."""

    model: str
    version: str
    id: str
    outputs: dict[str, Array]
    origin: Origin | None = field(default=None, repr=False, compare=False)
    """The frame that the rows came in."""

    def frame(self, library: Frames | None = None) -> Any:
        """The outputs as a frame of the library that the rows came in, or of a named one. See `frames.frame`."""
        origin = self.origin if library is None or self.origin is None else replace(self.origin, library=library)
        if origin is None:
            if library is None:
                raise InvalidInput(
                    "library: the rows came in no frame: name pandas, polars or pyarrow", field="library"
                )
            origin = Origin(library)
        return frame(self.outputs, origin)

    @property
    def array(self) -> Array:
        """The only output. Raises InvalidInput when there are several."""
        if len(self.outputs) != 1:
            names = ", ".join(self.outputs)
            raise InvalidInput(f"the model gives several outputs, {names}: take one of .outputs", field="outputs")
        return next(iter(self.outputs.values()))

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]


# ------------------------------------------------------------------------------------------------ what users give
def to_arrays(rows: object, signature: Signature) -> list[Array]:
    """What a user gave - array, list, frame, dict of arrays - as one array per input.

    Raises:
        InvalidInput: an input is missing, is none of the model's, or cannot be an array of its datatype and shape.
    """
    inputs = signature.inputs
    names = [spec.name for spec in inputs]
    columns = rows if isinstance(rows, Mapping) else _columns(rows) if len(inputs) > 1 else None
    if columns is None:
        if len(inputs) > 1:
            raise InvalidInput(f"the model takes several inputs: give a dict of {', '.join(names)}", field="rows")
        return [_array(_table(rows), inputs[0])]
    for name in names:
        if name not in columns:
            raise InvalidInput(
                f"input {name!r} is missing: the model takes {', '.join(names)}, got {', '.join(map(str, columns))}",
                field=name,
            )
    for given in columns:
        if given not in names:
            raise InvalidInput(f"no input {given!r}: the model takes {', '.join(names)}", field=str(given))
    return [_array(_table(columns[spec.name]), spec) for spec in inputs]


def _columns(rows: object) -> Mapping[str, object] | None:
    """A frame's columns by name; None when it has none."""
    frame: Any = rows
    names = getattr(frame, "column_names", None) or getattr(frame, "columns", None)
    if names is None or not hasattr(frame, "__getitem__"):
        return None
    return {str(name): frame[name] for name in names}


def _table(rows: object) -> object:
    """Frames and columns as arrays, told by what they can do: none of their libraries is imported."""
    frame: Any = rows
    if hasattr(frame, "column_names"):  # an Arrow table, or one of its batches
        return np.column_stack([np.asarray(frame[name]) for name in frame.column_names])
    if hasattr(frame, "to_numpy"):
        return frame.to_numpy()
    return rows


def _array(value: object, spec: TensorSpec) -> Array:
    array = _texts_of(value) if spec.datatype == "BYTES" else _numbers(value, spec)
    if array.ndim == len(spec.shape) - 1:
        array = array[np.newaxis]  # one row
    elif array.ndim == 1 and spec.shape == (-1, 1):
        array = array[:, np.newaxis]  # a column
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, have) for have, want in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidInput(
            f"input {spec.name!r}: shape {list(array.shape)}, expected {list(spec.shape)} (-1: any)", field=spec.name
        )
    return array


def _texts_of(value: object) -> Array:
    if isinstance(value, np.ndarray):
        return value.astype(object)
    return np.array(value, object)  # never by NumPy's own type for bytes, which takes zeros off their end


def _numbers(value: object, spec: TensorSpec) -> Array:
    """An array of the spec's datatype. Raises InvalidInput rather than change a number's meaning."""
    wanted = DATATYPES[spec.datatype]
    try:
        given = np.asarray(value)
        if given.dtype.kind in "US":  # by Python: NumPy's errors show text in its own notation
            number = float if wanted.kind == "f" else int
            given = np.array([number(item) for item in given.reshape(-1).tolist()]).reshape(given.shape)
        elif given.dtype.kind not in "biuf":
            given = given.astype(np.float64 if wanted.kind == "f" else wanted)
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.ascontiguousarray(given, wanted)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"input {spec.name!r}: not an array of {spec.datatype}: {error}", field=spec.name) from None
    if wanted.kind in "biu":
        changed = array != given
    elif wanted.itemsize < given.dtype.itemsize:
        changed = np.isinf(array) & ~np.isinf(given)
    else:
        return array
    if np.any(changed):
        wrong = given[changed].reshape(-1)[0]
        raise InvalidInput(f"input {spec.name!r}: {wrong!s} does not fit {spec.datatype}", field=spec.name)
    return array


# ------------------------------------------------------------------------------------------------ the wire
def encode(arrays: list[Array], signature: Signature, outputs: list[str] | None) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with binary tensors."""
    tensors, blobs = [], []
    for spec, array in zip(signature.inputs, arrays, strict=True):
        blob = _texts_to_bytes(array) if spec.datatype == "BYTES" else array.reshape(-1).view(np.uint8).data
        blobs.append(blob)
        parameters = {"binary_data_size": len(blob)}
        tensors.append({"name": spec.name, "shape": array.shape, "datatype": spec.datatype, "parameters": parameters})
    request: dict[str, object] = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    if outputs is not None:
        request["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    head = msgspec.json.encode(request)
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
        "accept-encoding": "identity",
    }
    return b"".join([head, *blobs]), headers


def decode(headers: Mapping[str, str], body: bytes) -> Prediction:
    """A reply of status 200."""
    length = int(headers.get("inference-header-content-length", len(body)))
    reply = msgspec.json.decode(body[:length])
    outputs: dict[str, Array] = {}
    at = length
    for tensor in reply["outputs"]:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            outputs[tensor["name"]] = np.array(tensor["data"]).reshape(tensor["shape"])
            continue
        if tensor["datatype"] == "BYTES":
            array = _texts_from_bytes(body[at : at + size])
        else:
            dtype = DATATYPES[tensor["datatype"]]
            # Copied: callers expect to write to what they get, and a small output shall not hold a large body.
            array = np.frombuffer(body, dtype, size // dtype.itemsize, at).copy()
        outputs[tensor["name"]] = array.reshape(tensor["shape"])
        at += size
    return Prediction(reply["model_name"], reply.get("model_version", ""), reply.get("id", ""), outputs)


def _texts_to_bytes(array: Array) -> bytes:
    items = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


def _texts_from_bytes(blob: bytes) -> Array:
    items, at = [], 0
    while at < len(blob):
        length = int.from_bytes(blob[at : at + 4], "little")
        items.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    array = np.empty(len(items), object)
    array[:] = items
    return array
