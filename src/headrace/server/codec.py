"""Open Inference Protocol bodies: decode and check a request against the signature, encode the reply.

Two ways in. The fast one takes the shape of nearly all requests - one floating tensor, flat JSON data, no options - and
only ever *accepts*; what it cannot accept goes the slow way, which handles everything else and says what is wrong.

Nothing here joins the bodies of two requests into one JSON text: a crafted body could shift its neighbours' rows.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from headrace.core import frames
from headrace.core.errors import InvalidInput
from headrace.core.schema import DATATYPES, Signature, TensorSpec
from headrace.server.compression import inflate
from headrace.server.tensors import Array, from_binary, from_json, to_binary, to_json

_FLOATS = {"FP16", "FP32", "FP64"}
_PACK = {"FP32": "f", "FP64": "d"}
_PACKED = frames.BINARY | frames.GZIP | frames.DEFLATE
"""Flags of a body that is not just JSON."""


class RequestTensor(msgspec.Struct):
    """Any input tensor."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] | None = None


class RequestedOutput(msgspec.Struct):
    """An output asked for."""

    name: str
    parameters: dict[str, Any] | None = None


class AnyRequest(msgspec.Struct):
    """Any inference request."""

    inputs: list[RequestTensor]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None


_decode_any = msgspec.json.Decoder(AnyRequest).decode
_encode = msgspec.json.Encoder().encode


class Part(msgspec.Struct, gc=False):
    """One request, decoded: either `flat` values (of the only input) or `arrays`, one per input."""

    rows: int
    id: bytes
    """JSON text of the id, or empty."""
    flat: list[float] | None = None
    arrays: list[Array] | None = None
    outputs: list[tuple[int, bool]] | None = None
    """(index into the signature's outputs, wants binary) in the order asked for; None: all, as JSON."""
    shape_key: tuple[tuple[int, ...], ...] | None = None
    """Shapes after the batch dimension where the signature leaves them free: only equal ones share a run."""


Reply = bytes | tuple[int, bytes] | InvalidInput
"""JSON; or with binary tensors the length of the JSON part and all of it; or why the output cannot be written."""


def flat_decoder(spec: TensorSpec) -> msgspec.json.Decoder[Any]:
    """A decoder of the requests that the fast way takes: the only input is `spec`, its data are flat numbers.

    The name and the datatype are constants to it, so they are compared while they are parsed. A number that has no
    finite double is no JSON number to it.
    """
    tensor: Any = msgspec.defstruct(
        "FlatTensor",
        [
            ("name", Literal[spec.name]),
            ("datatype", Literal[spec.datatype]),
            ("shape", list[int]),
            ("data", list[float]),
        ],
        gc=False,
    )
    request = msgspec.defstruct(
        "FlatRequest",
        [
            ("inputs", tuple[tensor]),
            ("id", msgspec.Raw, msgspec.Raw(b"")),
            ("parameters", None, None),
            ("outputs", None, None),
        ],
        gc=False,
    )
    return msgspec.json.Decoder(request)


class Codec:
    """Decoding, checking and encoding for one version."""

    def __init__(self, model: str, version: int, signature: Signature, *, finite: bool) -> None:
        self.signature = signature
        self.finite = finite
        self.batchable = signature.batchable
        self._index = {spec.name: k for k, spec in enumerate(signature.inputs)}
        self._outputs = {spec.name: k for k, spec in enumerate(signature.outputs)}
        first = signature.inputs[0]
        self._name, self._datatype = first.name, first.datatype
        tail = first.shape[1:]
        self._fast = (
            len(signature.inputs) == 1 and first.datatype in _PACK and self.batchable and all(n > 0 for n in tail)
        )
        self._decode_flat = flat_decoder(first).decode
        self._tail = list(tail)
        self._one_row = [1, *tail]
        self._width = math.prod(tail)
        self._pack = _PACK.get(first.datatype, "f")
        self._dtype = DATATYPES[first.datatype]
        self._free = any(-1 in spec.shape[1:] for spec in signature.inputs)
        self._head = b'{"model_name":%s,"model_version":"%d",' % (_encode(model), version)
        # The reply's constant text when every output is a (rows, k) or (rows,) table of floats.
        self._flat_output = len(signature.outputs) == 1 and signature.outputs[0].datatype in ("FP32", "FP64")
        self._output_text = [
            b'{"name":%s,"datatype":"%s","shape":[' % (_encode(spec.name), spec.datatype.encode())
            for spec in signature.outputs
        ]

    # ------------------------------------------------------------------------------------------------ in
    def decode(self, body: memoryview, flags: int, json_length: int) -> Part:
        """Decode and check one request.

        Args:
            body: the client's bytes.
            flags: of the frame: BINARY, GZIP, DEFLATE.
            json_length: bytes of the JSON part of a body with binary tensors, else -1.

        Raises:
            InvalidInput: names the tensor at fault and what was expected.
            TooLarge: a compressed body grows past `compression.INFLATED_MAX`.
        """
        if self._fast and not flags & _PACKED:
            try:
                request = self._decode_flat(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass
            else:
                tensor = request.inputs[0]
                shape, data, id_ = tensor.shape, tensor.data, bytes(request.id)
                if shape == self._one_row:
                    rows = 1
                else:
                    rows = shape[0] if shape and shape[1:] == self._tail else 0
                if rows > 0 and len(data) == rows * self._width and (not id_ or id_[0] == 34):
                    return Part(rows, id_, data)
        if flags & (frames.GZIP | frames.DEFLATE):
            body = memoryview(inflate(body, bool(flags & frames.GZIP)))
        if not flags & frames.BINARY:
            return self._decode_any(body, None)
        if json_length == 0:
            return self._decode_raw(body)
        if not 0 < json_length <= len(body):
            raise InvalidInput(
                f"Inference-Header-Content-Length: {json_length} is outside the body of {len(body)} bytes",
                field="inference-header-content-length",
            )
        return self._decode_any(body[:json_length], body[json_length:])

    def _decode_raw(self, body: memoryview) -> Part:
        """A body that is nothing but the only input's bytes."""
        if len(self.signature.inputs) != 1:
            raise InvalidInput(
                f"a raw body needs a model with one input, this one has {len(self.signature.inputs)}", field="inputs"
            )
        spec = self.signature.inputs[0]
        if spec.datatype == "BYTES":
            array = np.empty(1, object)
            array[0] = bytes(body)
            size = 1
        else:
            dtype = DATATYPES[spec.datatype]
            if len(body) % dtype.itemsize:
                raise InvalidInput(
                    f"input {spec.name!r}: {len(body)} bytes are no whole number of {spec.datatype}", field="inputs[0]"
                )
            array = np.frombuffer(body, dtype)
            size = array.size
        free = [k for k, n in enumerate(spec.shape) if n == -1]
        known = math.prod(n for n in spec.shape if n != -1)
        if size == 0 or known == 0 or size % known:
            raise InvalidInput(
                f"input {spec.name!r}: {size} values do not fill the shape {list(spec.shape)}", field="inputs[0]"
            )
        shape = [1 if n == -1 else n for n in spec.shape]
        if free:
            shape[free[0]] = size // known
        elif size != known:
            raise InvalidInput(f"input {spec.name!r}: {size} values, shape {shape} needs {known}", field="inputs[0]")
        # Clients that send raw bytes read raw bytes.
        return self._part([array.reshape(shape)], b"", [(0, True)])

    def _decode_any(self, text: memoryview, tail: memoryview | None) -> Part:
        try:
            request = _decode_any(text)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$")
            raise InvalidInput(f"{path.strip('.`') or 'body'}: {message}", field=path.strip(".`") or None) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput(f"body is not JSON: {error}", field="body") from None
        if (request.parameters or {}).get("sequence_id"):
            raise InvalidInput("parameters.sequence_id: sequences are not supported", field="parameters.sequence_id")
        arrays: list[Array | None] = [None] * len(self.signature.inputs)
        at = 0
        for k, tensor in enumerate(request.inputs):
            where = f"inputs[{k}]"
            index = self._index.get(tensor.name)
            if index is None:
                raise InvalidInput(
                    f"{where}: unknown input {tensor.name!r}, the model takes {', '.join(map(repr, self._index))}",
                    field=f"{where}.name",
                )
            if arrays[index] is not None:
                raise InvalidInput(f"{where}: input {tensor.name!r} is given twice", field=f"{where}.name")
            spec = self.signature.inputs[index]
            where = f"{where} {tensor.name!r}"
            size = self._check(tensor, spec, where)
            binary = (tensor.parameters or {}).get("binary_data_size")
            if binary is None:
                arrays[index] = from_json(tensor.data, tensor.shape, tensor.datatype, size, where)
                continue
            if tail is None or not isinstance(binary, int) or isinstance(binary, bool) or binary < 0:
                raise InvalidInput(
                    f"{where}: binary_data_size needs an Inference-Header-Content-Length header and a whole number",
                    field=f"{where}.parameters.binary_data_size",
                )
            if at + binary > len(tail):
                raise InvalidInput(
                    f"{where}: {binary} bytes announced, the body has {len(tail) - at} left",
                    field=f"{where}.parameters.binary_data_size",
                )
            arrays[index] = from_binary(tail[at : at + binary], tensor.shape, tensor.datatype, size, where)
            at += binary
        if tail is not None and at != len(tail):
            raise InvalidInput(f"body: {len(tail) - at} bytes follow the last announced tensor", field="body")
        whole: list[Array] = []
        for spec, array in zip(self.signature.inputs, arrays, strict=True):
            if array is None:
                raise InvalidInput(
                    f"input {spec.name!r} is missing; expected {spec.datatype} {list(spec.shape)}", field="inputs"
                )
            if self.finite and spec.datatype in _FLOATS and not np.isfinite(array).all():
                raise InvalidInput(f"input {spec.name!r}: values must be finite {spec.datatype}", field="inputs")
            whole.append(array)
        return self._part(whole, _encode(request.id) if request.id else b"", self._asked(request))

    def _check(self, tensor: RequestTensor, spec: TensorSpec, where: str) -> int:
        """The number of values that the tensor's shape means."""
        if tensor.datatype != spec.datatype:
            raise InvalidInput(
                f"{where}: datatype {tensor.datatype!r}, expected {spec.datatype}", field=f"{where}.datatype"
            )
        if len(tensor.shape) != len(spec.shape) or any(
            n < 1 or (want not in (-1, n)) for n, want in zip(tensor.shape, spec.shape, strict=False)
        ):
            raise InvalidInput(f"{where}: shape {tensor.shape}, expected {list(spec.shape)}", field=f"{where}.shape")
        return math.prod(tensor.shape)

    def _asked(self, request: AnyRequest) -> list[tuple[int, bool]] | None:
        binary = bool((request.parameters or {}).get("binary_data_output"))
        if request.outputs is None or not request.outputs:
            return [(k, True) for k in range(len(self.signature.outputs))] if binary else None
        asked = []
        for k, output in enumerate(request.outputs):
            index = self._outputs.get(output.name)
            if index is None:
                raise InvalidInput(
                    f"outputs[{k}]: unknown output {output.name!r}, the model gives "
                    f"{', '.join(map(repr, self._outputs))}",
                    field=f"outputs[{k}].name",
                )
            parameters = output.parameters or {}
            if parameters.get("classification"):
                raise InvalidInput(
                    f"outputs[{k}]: the classification extension is not supported",
                    field=f"outputs[{k}].parameters.classification",
                )
            asked.append((index, bool(parameters.get("binary_data", binary))))
        return asked

    def _part(self, arrays: list[Array], id_: bytes, outputs: list[tuple[int, bool]] | None) -> Part:
        rows = 1
        if self.batchable:
            rows = arrays[0].shape[0]
            for spec, array in zip(self.signature.inputs, arrays, strict=True):
                if array.shape[0] != rows:
                    raise InvalidInput(
                        f"input {spec.name!r}: {array.shape[0]} rows, input {self._name!r} has {rows}", field="inputs"
                    )
        key = tuple(array.shape[1:] for array in arrays) if self._free else None
        return Part(rows, id_, arrays=arrays, outputs=outputs, shape_key=key)

    # ------------------------------------------------------------------------------------------------ batch
    def batch(self, parts: Sequence[Part]) -> list[Array]:
        """The batch's inputs: rows of all parts, in order.

        Raises:
            OverflowError, struct.error: a value of a flat part does not fit the datatype; see `isolate`.
        """
        if not self._fast:
            columns = [[part.arrays[k] for part in parts if part.arrays] for k in range(len(self.signature.inputs))]
            return [c[0] if len(c) == 1 else np.concatenate(c) for c in columns]
        blocks: list[Array] = []
        values: list[float] = []
        for part in parts:
            if part.flat is not None:
                values += part.flat
            elif part.arrays:
                if values:
                    blocks.append(self._packed(values))
                    values = []
                blocks.append(part.arrays[0])
        if values:
            blocks.append(self._packed(values))
        return [blocks[0] if len(blocks) == 1 else np.concatenate(blocks)]

    def _packed(self, values: list[float]) -> Array:
        # As JSON's numbers they are finite, and `pack` refuses what overflows the datatype: no look for NaN is needed.
        text = struct.pack(f"<{len(values)}{self._pack}", *values)
        return np.frombuffer(text, self._dtype).reshape([-1, *self._tail])

    def isolate(self, part: Part) -> list[Array]:
        """One part as arrays. Raises InvalidInput when a value does not fit the datatype."""
        try:
            return self.batch([part])
        except (OverflowError, struct.error):
            message = f"input {self._name!r}: values must be finite numbers that fit {self._datatype}"
            raise InvalidInput(message, field="inputs[0].data") from None

    # ------------------------------------------------------------------------------------------------ out
    def encode(self, parts: Sequence[Part], outputs: Sequence[Array]) -> Sequence[Reply]:
        """Replies of a batch, in the parts' order."""
        if self._flat_output and outputs[0].ndim == 2 and not [part for part in parts if part.outputs]:
            return self._encode_table(parts, outputs[0])
        replies: list[Reply] = []
        at = 0
        for part in parts:
            end = at + part.rows
            mine = [output[at:end] for output in outputs] if self.batchable else list(outputs)
            try:
                replies.append(self._encode_one(part, mine))
            except InvalidInput as error:
                replies.append(error)
            at = end
        return replies

    def _encode_table(self, parts: Sequence[Part], table: Array) -> list[bytes]:
        """One JSON call for the whole batch, cut at the row borders."""
        rows = _encode(table.tolist())[2:-2].split(b"],[")
        head, text, width = self._head, self._output_text[0], table.shape[1]
        one = b'%b1,%d],"data":[' % (text, width)
        replies: list[bytes] = []
        at = 0
        for part in parts:
            id_, n = part.id, part.rows
            start = b'%b"id":%b,"outputs":[' % (head, id_) if id_ else head + b'"outputs":['
            if n == 1:
                replies.append(b"%b%b%b]}]}" % (start, one, rows[at]))
            else:
                data = b",".join(rows[at : at + n])
                replies.append(b'%b%b%d,%d],"data":[%b]}]}' % (start, text, n, width, data))
            at += n
        return replies

    def _encode_one(self, part: Part, outputs: list[Array]) -> Reply:
        asked = part.outputs if part.outputs is not None else [(k, False) for k in range(len(outputs))]
        texts, blobs = [], []
        for index, binary in asked:
            spec, array = self.signature.outputs[index], outputs[index]
            text = self._output_text[index] + b",".join(b"%d" % n for n in array.shape) + b"],"
            if binary:
                blob = to_binary(array, spec.datatype)
                blobs.append(blob)
                texts.append(text + b'"parameters":{"binary_data_size":%d}}' % len(blob))
            else:
                texts.append(text + b'"data":' + to_json(array, spec.datatype) + b"}")
        id_ = b'"id":' + part.id + b"," if part.id else b""
        text = self._head + id_ + b'"outputs":[' + b",".join(texts) + b"]}"
        if not blobs:
            return text
        return len(text), b"".join([text, *blobs])
