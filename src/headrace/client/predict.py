"""Inference requests and replies in the Open Inference Protocol's binary form. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import (
    DeadlineExceeded,
    Forbidden,
    HeadraceError,
    InvalidInput,
    NotFound,
    PlatformFault,
    QuotaExceeded,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from headrace.core.schema import DATATYPES, Signature, TensorSpec

Array = NDArray[Any]
_BY_STATUS: dict[int, type[HeadraceError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    413: TooLarge,
    429: QuotaExceeded,
    503: Unavailable,
    504: DeadlineExceeded,
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer."""

    model: str
    version: str
    id: str
    outputs: dict[str, Array]

    @property
    def array(self) -> Array:
        """The only output, or the first."""
        return next(iter(self.outputs.values()))


def to_arrays(rows: object, signature: Signature) -> list[Array]:
    """What a user gave - array, list, frame, dict of arrays - as one array per input.

    Raises:
        InvalidInput: an input is missing or cannot be an array of its datatype.
    """
    inputs = signature.inputs
    if isinstance(rows, Mapping) and (len(inputs) > 1 or inputs[0].name in rows):
        missing = [spec.name for spec in inputs if spec.name not in rows]
        if missing:
            raise InvalidInput(f"input {missing[0]!r} is missing", field=missing[0])
        return [_array(rows[spec.name], spec) for spec in inputs]
    if len(inputs) > 1:
        names = ", ".join(spec.name for spec in inputs)
        raise InvalidInput(f"the model takes several inputs: give a dict of {names}", field="rows")
    if hasattr(rows, "to_numpy"):
        rows = rows.to_numpy()
    elif hasattr(rows, "to_pandas"):  # an Arrow table
        rows = rows.to_pandas().to_numpy()
    return [_array(rows, inputs[0])]


def _array(value: object, spec: TensorSpec) -> Array:
    if spec.datatype == "BYTES":
        array = np.asarray(value, object)
    else:
        try:
            array = np.ascontiguousarray(value, DATATYPES[spec.datatype])
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"input {spec.name!r}: not an array of {spec.datatype}: {error}", field=spec.name
            ) from None
    if array.ndim == len(spec.shape) - 1:
        array = array[np.newaxis]  # one row
    return array


def encode(arrays: list[Array], signature: Signature, outputs: list[str] | None) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with binary tensors."""
    tensors, blobs = [], []
    for spec, array in zip(signature.inputs, arrays, strict=True):
        if spec.datatype == "BYTES":
            items = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
            blob = b"".join(len(item).to_bytes(4, "little") + item for item in items)
        else:
            blob = array.tobytes()
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


def decode(status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
    """A reply. Raises the error that its status names."""
    if status != 200:
        try:
            message = str(msgspec.json.decode(body)["error"])
        except (msgspec.DecodeError, KeyError, TypeError):
            message = f"the platform answered {status}"
        raise _BY_STATUS.get(status, PlatformFault)(message)
    length = int(headers.get("inference-header-content-length", len(body)))
    reply = msgspec.json.decode(body[:length])
    outputs: dict[str, Array] = {}
    at = length
    for tensor in reply["outputs"]:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            outputs[tensor["name"]] = np.array(tensor["data"]).reshape(tensor["shape"])
            continue
        blob, at = body[at : at + size], at + size
        if tensor["datatype"] == "BYTES":
            outputs[tensor["name"]] = _texts(blob, tensor["shape"])
        else:
            array = np.frombuffer(blob, DATATYPES[tensor["datatype"]])
            outputs[tensor["name"]] = array.reshape(tensor["shape"])
    return Prediction(reply["model_name"], reply.get("model_version", ""), reply.get("id", ""), outputs)


def _texts(blob: bytes, shape: list[int]) -> Array:
    items, at = [], 0
    while at < len(blob):
        length = int.from_bytes(blob[at : at + 4], "little")
        items.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)
