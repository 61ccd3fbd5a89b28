"""What a gRPC message says is what the replica's codec reads, and what the codec writes is what the message says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.core import frames
from headrace.core.errors import InvalidInput
from headrace.core.schema import DATATYPES, Signature, TensorSpec
from headrace.router.grpc_api import inference_pb2 as pb
from headrace.router.grpc_tensors import CONTENTS, request_body, response
from headrace.server.codec import Array, Codec, to_binary

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@st.composite
def tensors(draw: st.DrawFn, datatypes: list[str]) -> list[tuple[str, str, Array]]:
    """One to three tensors: name, datatype, values."""
    found = []
    for name in draw(st.lists(TEXT, min_size=1, max_size=3, unique=True)):
        datatype = draw(st.sampled_from(datatypes))
        shape = draw(SHAPES)
        if datatype == "BYTES":
            array = np.empty(int(np.prod(shape)), object)
            array[:] = draw(st.lists(st.binary(max_size=6), min_size=array.size, max_size=array.size))
            found.append((name, datatype, array.reshape(shape)))
        else:
            found.append((name, datatype, draw(hnp.arrays(DATATYPES[datatype], shape))))
    return found


def codec_of(values: list[tuple[str, str, Array]]) -> Codec:
    specs = tuple(TensorSpec(name, datatype, array.shape) for name, datatype, array in values)
    return Codec("m", 3, Signature(specs, specs), finite=False)


def message(values: list[tuple[str, str, Array]], typed: bool) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m", id="7")
    for name, datatype, array in values:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            getattr(tensor.contents, CONTENTS[datatype][0]).extend(array.reshape(-1).tolist())
        else:
            request.raw_input_contents.append(to_binary(array, datatype))
    return request


def same(left: Array, right: Array) -> bool:
    return left.shape == right.shape and (
        left.tolist() == right.tolist() if left.dtype == object else left.tobytes() == right.tobytes()
    )


@settings(deadline=None, max_examples=200)
@given(tensors(list(DATATYPES)), st.booleans())
def test_a_request_comes_through_and_its_reply_goes_back(values: list[tuple[str, str, Array]], reverse: bool) -> None:
    codec = codec_of(values)
    request = message(values, typed=False)
    wanted = values[::-1] if reverse else values
    for name, _, _ in values[::-1] if reverse else []:
        request.outputs.add(name=name)
    body, length = request_body(request)
    part = codec.decode(memoryview(body), frames.BINARY, length)
    assert part.arrays is not None
    assert all(same(array, given) for array, (_, _, given) in zip(part.arrays, values, strict=True))
    [encoded] = codec.encode([part], part.arrays)
    assert not isinstance(encoded, InvalidInput)
    reply = response(encoded[1], encoded[0])
    assert (reply.model_name, reply.model_version, reply.id) == ("m", "3", "7")
    assert [(o.name, o.datatype, tuple(o.shape)) for o in reply.outputs] == [(n, d, a.shape) for n, d, a in wanted]
    assert list(reply.raw_output_contents) == [to_binary(array, datatype) for _, datatype, array in wanted]


@settings(deadline=None, max_examples=200)
@given(tensors(list(CONTENTS)))
def test_typed_contents_mean_what_their_bytes_mean(values: list[tuple[str, str, Array]]) -> None:
    codec = codec_of(values)
    body, length = request_body(message(values, typed=True))
    part = codec.decode(memoryview(body), frames.BINARY, length)
    assert part.arrays is not None
    for array, (_, _, wanted) in zip(part.arrays, values, strict=True):
        if array.dtype.kind == "f":  # a NaN need not keep its payload on the way through Python
            assert np.array_equal(array, wanted, equal_nan=True)
        else:
            assert same(array, wanted)


def tensor(datatype: str = "FP32", shape: tuple[int, ...] = (2,), **contents: list[object]) -> pb.ModelInferRequest:
    inner = pb.InferTensorContents(**contents)
    return pb.ModelInferRequest(inputs=[{"name": "x", "datatype": datatype, "shape": shape, "contents": inner}])


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (tensor(fp32_contents=[1.0]), "inputs[0] 'x': 1 values, shape [2] needs 2"),
        (tensor(shape=()), "inputs[0] 'x': 0 values, shape [] needs 1"),
        (tensor(int_contents=[1, 2]), "inputs[0] 'x': contents.int_contents, expected fp32_contents for FP32"),
        (tensor("INT8", int_contents=[1, 128]), "inputs[0] 'x': a value does not fit INT8"),
        (tensor("UINT16", uint_contents=[1, 1 << 16]), "inputs[0] 'x': a value does not fit UINT16"),
        (tensor("FP16", fp32_contents=[1.0, 2.0]), "datatype 'FP16' has no typed contents"),
        (tensor("FLOAT", fp32_contents=[1.0, 2.0]), "datatype 'FLOAT' has no typed contents"),
        (
            pb.ModelInferRequest(inputs=[{"name": "x"}, {"name": "y"}], raw_input_contents=[b""]),
            "raw_input_contents: 1 items for 2 inputs",
        ),
        (
            pb.ModelInferRequest(inputs=[{"name": "x", "contents": {}}], raw_input_contents=[b""]),
            "inputs[0] 'x': contents beside raw_input_contents",
        ),
        (
            pb.ModelInferRequest(
                inputs=[{"name": "x", "parameters": {"shared_memory_region": {"string_param": "r"}}}],
                raw_input_contents=[b""],
            ),
            "inputs[0] 'x': shared_memory_region: tensors in shared memory are not supported",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_the_tensors_name(request_: pb.ModelInferRequest, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        request_body(request_)
    assert says in refused.value.message


def test_a_reply_that_is_none_is_an_error() -> None:
    head = b'{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"BOOL","shape":[1],"parameters":'
    head += b'{"binary_data_size":1}}]}'
    assert response(head + b"\x01", len(head)).raw_output_contents == [b"\x01"]
    for body, length in ((head, len(head)), (head + b"12", len(head)), (b"", 0), (b"{}", 2)):
        with pytest.raises(ValueError):
            response(body, length)
