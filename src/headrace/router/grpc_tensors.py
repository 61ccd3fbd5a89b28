"""Inference requests and replies between gRPC messages and the bodies that replicas read and write.

A replica knows one form: JSON, then the tensors' bytes (the binary tensor extension). Tensors that come as bytes pass
through unread; typed `contents` are turned into bytes here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from headrace.core.errors import InvalidInput
from headrace.core.schema import DATATYPES
from headrace.router.grpc_api import inference_pb2 as pb

Parameter = bool | int | float | str

CONTENTS: Final = {
    "BOOL": ("bool_contents", np.dtype("?")),
    **dict.fromkeys(("INT8", "INT16", "INT32"), ("int_contents", np.dtype("<i4"))),
    "INT64": ("int64_contents", np.dtype("<i8")),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), ("uint_contents", np.dtype("<u4"))),
    "UINT64": ("uint64_contents", np.dtype("<u8")),
    "FP32": ("fp32_contents", np.dtype("<f4")),
    "FP64": ("fp64_contents", np.dtype("<f8")),
    "BYTES": ("bytes_contents", np.dtype("O")),
}
"""Datatype -> the field of `InferTensorContents` that carries it, and what that field holds."""
_encode = msgspec.json.Encoder().encode


class _Input(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter]


class _Asked(msgspec.Struct, gc=False):
    name: str
    parameters: dict[str, Parameter]


class _Request(msgspec.Struct, omit_defaults=True, gc=False):
    inputs: list[_Input]
    parameters: dict[str, Parameter]
    id: str = ""
    outputs: list[_Asked] = []


class _Size(msgspec.Struct, gc=False):
    binary_data_size: int


class _Output(msgspec.Struct, gc=False):
    name: str
    datatype: str
    shape: list[int]
    parameters: _Size


class _Reply(msgspec.Struct, gc=False):
    model_name: str
    model_version: str
    outputs: list[_Output]
    id: str = ""


_decode_reply = msgspec.json.Decoder(_Reply).decode


def request_body(request: pb.ModelInferRequest) -> tuple[bytes, int]:
    """The body of a request, and how many of its bytes are JSON. All outputs are asked for as bytes.

    Raises:
        InvalidInput: the tensors do not come as the protocol says; names the one at fault.
    """
    raw = list(request.raw_input_contents) or [contents(tensor, k) for k, tensor in enumerate(request.inputs)]
    if len(raw) != len(request.inputs):
        raise InvalidInput(
            f"raw_input_contents: {len(raw)} items for {len(request.inputs)} inputs, expected one for each",
            field="raw_input_contents",
        )
    inputs = []
    for k, (tensor, data) in enumerate(zip(request.inputs, raw, strict=True)):
        if request.raw_input_contents and tensor.HasField("contents"):
            where = f"inputs[{k}] {tensor.name!r}"
            raise InvalidInput(f"{where}: contents beside raw_input_contents, expected one of them", field=where)
        given = parameters(tensor.parameters, f"inputs[{k}] {tensor.name!r}")
        inputs.append(
            _Input(tensor.name, list(tensor.shape), tensor.datatype, {**given, "binary_data_size": len(data)})
        )
    asked = [
        _Asked(o.name, {**parameters(o.parameters, f"outputs[{k}] {o.name!r}"), "binary_data": True})
        for k, o in enumerate(request.outputs)
    ]
    given = parameters(request.parameters, "parameters")
    text = _encode(_Request(inputs, {**given, "binary_data_output": True}, request.id, asked))
    return b"".join([text, *raw]), len(text)


def parameters(given: Mapping[str, pb.InferParameter], where: str) -> dict[str, Parameter]:
    """Parameters as JSON has them. Raises InvalidInput for tensors in shared memory."""
    found: dict[str, Parameter] = {}
    for name, value in given.items():
        if name.startswith("shared_memory"):
            raise InvalidInput(f"{where}: {name}: tensors in shared memory are not supported", field=name)
        choice = value.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(value, choice)
    return found


def contents(tensor: pb.ModelInferRequest.InferInputTensor, index: int) -> bytes:
    """The bytes of a tensor that came as typed values. Raises InvalidInput."""
    where = f"inputs[{index}] {tensor.name!r}"
    if tensor.datatype not in CONTENTS:
        kinds = ", ".join(CONTENTS)
        raise InvalidInput(
            f"{where}: datatype {tensor.datatype!r} has no typed contents (those have {kinds}); "
            "send it in raw_input_contents",
            field=f"{where}.datatype",
        )
    field, held = CONTENTS[tensor.datatype]
    for other, _ in tensor.contents.ListFields():
        if other.name != field:
            raise InvalidInput(
                f"{where}: contents.{other.name}, expected {field} for {tensor.datatype}", field=f"{where}.contents"
            )
    values = getattr(tensor.contents, field)
    size = math.prod(tensor.shape)
    if len(values) != size and min(tensor.shape, default=1) >= 0:  # a negative dimension is told by the replica
        raise InvalidInput(
            f"{where}: {len(values)} values, shape {list(tensor.shape)} needs {size}", field=f"{where}.contents"
        )
    if tensor.datatype == "BYTES":
        return b"".join([part for item in values for part in (len(item).to_bytes(4, "little"), item)])
    array = np.fromiter(values, held, len(values))
    wanted = DATATYPES[tensor.datatype]
    if wanted != held and array.size:
        limits = np.iinfo(wanted)
        if array.min() < limits.min or array.max() > limits.max:
            raise InvalidInput(f"{where}: a value does not fit {tensor.datatype}", field=f"{where}.contents")
    return array.astype(wanted, copy=False).tobytes()


def response(body: bytes, json_length: int) -> pb.ModelInferResponse:
    """A replica's reply as a message.

    Raises:
        ValueError: it is not a body of JSON and the bytes that it announces.
    """
    reply = _decode_reply(memoryview(body)[:json_length])
    message = pb.ModelInferResponse(model_name=reply.model_name, model_version=reply.model_version, id=reply.id)
    at = json_length
    for output in reply.outputs:
        end = at + output.parameters.binary_data_size
        message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        message.raw_output_contents.append(body[at:end])
        at = end
    if at != len(body):
        raise ValueError(f"{len(body)} bytes, {at} announced")
    return message
