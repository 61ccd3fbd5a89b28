"""Open Inference Protocol bodies: decode and check a request against the signature, encode the reply.

Two ways in. The fast one takes the shape of nearly all requests - one numeric tensor, flat JSON data, no options - and
only ever *accepts*; what it cannot accept goes the slow way, which handles everything else and says what is wrong.

Nothing here joins the bodies of two requests into one JSON text: a crafted body could shift its neighbours' rows.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.core import frames
from headrace.core.errors import InvalidInput, TooLarge
from headrace.core.schema import DATATYPES, Signature, TensorSpec

Array = NDArray[Any]
INFLATED_MAX = 256 << 20
"""Bytes that a compressed body may grow to."""
_FLOATS = {"FP16", "FP32", "FP64"}
_PACK = {"FP32": "f", "FP64": "d"}


class FlatTensor(msgspec.Struct, gc=False):
    """A tensor with flat numeric data."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class FlatRequest(msgspec.Struct, gc=False):
    """The shape of nearly all requests."""

    inputs: tuple[FlatTensor]
    id: msgspec.Raw = msgspec.Raw(b"")
    parameters: None = None
    outputs: None = None


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


_decode_flat = msgspec.json.Decoder(FlatRequest).decode
_decode_any = msgspec.json.Decoder(AnyRequest).decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Part:
    """One request, decoded: either `flat` values (of the only input) or `arrays`, one per input."""

    rows: int
    id: bytes
    """JSON text of the id, or empty."""
    flat: list[float] | None
    arrays: list[Array] | None
    outputs: list[tuple[int, bool]] | None
    """(index into the signature's outputs, wants binary) in the order asked for; None: all, as JSON."""
    shape_key: tuple[tuple[int, ...], ...] | None = None
    """Shapes after the batch dimension where the signature leaves them free: only equal ones share a run."""


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
        self._tail = list(tail)
        self._width = math.prod(tail)
        self._pack = _PACK.get(first.datatype, "f")
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
            TooLarge: a compressed body grows past `INFLATED_MAX`.
        """
        if flags & (frames.GZIP | frames.DEFLATE):
            body = memoryview(inflate(body, bool(flags & frames.GZIP)))
        if not flags & frames.BINARY:
            if self._fast:
                try:
                    request = _decode_flat(body)
                    tensor = request.inputs[0]
                    shape, data, id_ = tensor.shape, tensor.data, bytes(request.id)
                    rows = shape[0]
                    if (
                        tensor.name == self._name
                        and tensor.datatype == self._datatype
                        and shape[1:] == self._tail
                        and rows > 0
                        and len(data) == rows * self._width
                        and (not id_ or id_[0] == 34)
                    ):
                        return Part(rows, id_, data, None, None)
                except msgspec.ValidationError:
                    pass
                except (IndexError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    pass
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
                arrays[index] = _from_json(tensor, spec, size, where)
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
        return Part(rows, id_, None, arrays, outputs, key)

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
        text = struct.pack(f"<{len(values)}{self._pack}", *values)
        return np.frombuffer(text, DATATYPES[self._datatype]).reshape([-1, *self._tail])

    def all_finite(self, inputs: Sequence[Array]) -> bool:
        """One pass over the flat parts' column; an overflowing sum is a false alarm that only costs `isolate`."""
        if not (self.finite and self._fast):
            return True
        flat = inputs[0].reshape(-1)
        return math.isfinite(float(np.dot(flat, flat)))

    def isolate(self, part: Part) -> list[Array]:
        """One part as arrays. Raises InvalidInput when its values are not finite numbers of the datatype."""
        try:
            inputs = self.batch([part])
        except (OverflowError, struct.error):
            inputs = []
        if not inputs or (self.finite and self._fast and not np.isfinite(inputs[0]).all()):
            raise InvalidInput(
                f"input {self._name!r}: values must be finite numbers that fit {self._datatype}", field="inputs[0].data"
            )
        return inputs

    # ------------------------------------------------------------------------------------------------ out
    def encode(self, parts: Sequence[Part], outputs: Sequence[Array]) -> list[tuple[int, bytes] | InvalidInput]:
        """Replies of a batch, in the parts' order.

        Returns:
            Per part (JSON length of a reply with binary tensors, or -1; bytes), or why it cannot be written.
        """
        if self._flat_output and outputs[0].ndim == 2 and all(part.outputs is None for part in parts):
            return self._encode_table(parts, outputs[0])
        replies: list[tuple[int, bytes] | InvalidInput] = []
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

    def _encode_table(self, parts: Sequence[Part], table: Array) -> list[tuple[int, bytes] | InvalidInput]:
        """One JSON call for the whole batch, cut at the row borders."""
        rows = _encode(table.tolist())[2:-2].split(b"],[")
        width = b",%d" % table.shape[1]
        head, text = self._head, self._output_text[0]
        replies: list[tuple[int, bytes] | InvalidInput] = []
        at = 0
        for part in parts:
            n = part.rows
            if n == 1:
                data, shape = rows[at], b"1"
            else:
                data, shape = b",".join(rows[at : at + n]), b"%d" % n
            at += n
            id_ = b'"id":' + part.id + b"," if part.id else b""
            replies.append((-1, b'%b%b"outputs":[%b%b%b],"data":[%b]}]}' % (head, id_, text, shape, width, data)))
        return replies

    def _encode_one(self, part: Part, outputs: list[Array]) -> tuple[int, bytes]:
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
                texts.append(text + b'"data":' + _to_json(array, spec.datatype) + b"}")
        id_ = b'"id":' + part.id + b"," if part.id else b""
        text = self._head + id_ + b'"outputs":[' + b",".join(texts) + b"]}"
        if not blobs:
            return -1, text
        return len(text), b"".join([text, *blobs])


def inflate(body: memoryview, gzip: bool) -> bytes:
    """Decompress gzip or zlib/raw deflate, bounded. Raises InvalidInput or TooLarge."""
    for bits in (31,) if gzip else (15, -15):
        machine = zlib.decompressobj(bits)
        try:
            data = machine.decompress(body, INFLATED_MAX)
        except zlib.error:
            continue
        if machine.unconsumed_tail:
            raise TooLarge(f"body: grows past {INFLATED_MAX} bytes when decompressed", field="content-encoding")
        if machine.eof:
            return data
    raise InvalidInput("body: not whole, or not what content-encoding says", field="content-encoding")


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


def _from_json(tensor: RequestTensor, spec: TensorSpec, size: int, where: str) -> Array:
    """JSON data, flat or nested, as an array of the spec's dtype."""
    values = _flatten(tensor.data, where)
    if len(values) != size:
        raise InvalidInput(f"{where}: {len(values)} values, shape {tensor.shape} needs {size}", field=f"{where}.data")
    if spec.datatype == "BYTES":
        array = np.empty(size, object)
        for k, value in enumerate(values):
            if not isinstance(value, str):
                raise InvalidInput(f"{where}: item {k} is no text, BYTES in JSON are strings", field=f"{where}.data")
            array[k] = value.encode()
        return array.reshape(tensor.shape)
    dtype = DATATYPES[spec.datatype]
    wanted: tuple[type, ...] = (bool,) if dtype.kind == "b" else (int,) if dtype.kind in "iu" else (int, float)
    if dtype.kind == "f":
        values = [math.nan if value is None else value for value in values]
    for k, value in enumerate(values):
        if type(value) not in wanted:
            raise InvalidInput(
                f"{where}: item {k} is {_json_name(value)}, expected {spec.datatype}", field=f"{where}.data"
            )
    try:
        with np.errstate(over="ignore"):
            return np.array(values, np.float64 if dtype.kind == "f" else dtype).astype(dtype).reshape(tensor.shape)
    except (OverflowError, ValueError):
        raise InvalidInput(f"{where}: a value does not fit {spec.datatype}", field=f"{where}.data") from None


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


def _to_json(array: Array, datatype: str) -> bytes:
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
