"""Requests decode the same whichever way they take, and replies say what the model gave."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import frames
from headrace.core.errors import InvalidInput
from headrace.core.schema import Signature, TensorSpec
from headrace.server.batcher import plan_runs
from headrace.server.codec import Codec, Part

WIDTH = 3
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("y", "FP32", (-1, 2)),))
CODEC = Codec("m", 1, SIGNATURE, finite=True)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.lists(FLOATS, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4)
IDS = st.text(max_size=5)


def request(rows: list[list[float]], id_: str, **more: object) -> bytes:
    """A body with flat data, which the fast way takes unless there is `more`."""
    tensor = {
        "name": "x",
        "shape": [len(rows), WIDTH],
        "datatype": "FP32",
        "data": [value for row in rows for value in row],
    }
    return json.dumps({"id": id_, "inputs": [tensor], **more}).encode()


def decoded(body: bytes) -> Part:
    return CODEC.decode(memoryview(body), 0, -1)


@given(ROWS, IDS)
def test_both_ways_read_the_same(rows: list[list[float]], id_: str) -> None:
    fast = decoded(request(rows, id_))
    slow = decoded(request(rows, id_, parameters={}))
    assert fast.flat is not None and slow.flat is None
    assert (fast.rows, json.loads(fast.id or b'""')) == (slow.rows, json.loads(slow.id or b'""'))
    assert np.array_equal(CODEC.batch([fast])[0], CODEC.batch([slow])[0])


@given(st.lists(st.tuples(ROWS, IDS, st.booleans()), min_size=1, max_size=8), st.integers(1, 6))
def test_every_part_of_a_batch_gets_its_own_rows(
    requests: list[tuple[list[list[float]], str, bool]], rows_max: int
) -> None:
    """Whatever shares a run: rows of each part, in its order, with its id."""
    parts = [decoded(request(rows, id_, **({"parameters": {}} if slow else {}))) for rows, id_, slow in requests]
    answered = {}
    for jobs, mine, rows in plan_runs(list(range(len(parts))), parts, rows_max, True):
        assert rows <= rows_max or len(jobs) == 1
        (batch,) = CODEC.batch(mine)
        assert len(batch) == rows == sum(part.rows for part in mine)
        for job, reply in zip(jobs, CODEC.encode(mine, [batch[:, :2]]), strict=True):
            assert isinstance(reply, bytes)
            answered[job] = json.loads(reply)
    for k, (rows, id_, _) in enumerate(requests):
        output = answered[k]["outputs"][0]
        assert answered[k].get("id", "") == id_
        assert output["shape"] == [len(rows), 2]
        assert np.array_equal(np.array(output["data"], np.float32).reshape(-1, 2), np.array(rows, np.float32)[:, :2])


@given(
    st.lists(
        st.one_of(FLOATS, st.integers(-(10**30), 10**30), st.sampled_from([1e39, -1e300, None, True, "1", []])),
        min_size=WIDTH,
        max_size=WIDTH,
    ),
    st.sampled_from([[1, WIDTH], [WIDTH], [1, 1, WIDTH], [0, WIDTH], [-1, WIDTH], [2, WIDTH], []]),
)
def test_what_one_way_refuses_the_other_refuses(values: list[object], shape: list[int]) -> None:
    """And what is refused is said at the field, whether when it is read or when it is put into the batch."""

    def run(**more: object) -> list[float] | str:
        tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": values}
        try:
            part = decoded(json.dumps({"inputs": [tensor], **more}).encode())
            return CODEC.isolate(part)[0].tolist()  # type: ignore[no-any-return]
        except InvalidInput as error:
            assert error.field and error.field.startswith("inputs")
            return "refused"

    assert run() == run(parameters={})


@pytest.mark.parametrize("text", ["1e999", "-1e999", "NaN", "Infinity"])
def test_numbers_that_json_or_a_double_cannot_hold(text: str) -> None:
    body = request([[1.0, 2.0, 77.0]], "").replace(b"77.0", text.encode())
    with pytest.raises(InvalidInput):
        decoded(body)


@given(ROWS, st.booleans())
def test_binary_tensors_come_back_as_they_went(rows: list[list[float]], finite: bool) -> None:
    codec = Codec("m", 1, SIGNATURE, finite=finite)
    array = np.array(rows, np.float32)
    if not finite:
        array[0, 0] = math.nan
    tensor = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    part = codec.decode(memoryview(head + array.tobytes()), frames.BINARY, len(head))
    (batch,) = codec.batch([part])
    (reply,) = codec.encode([part], [batch[:, :2]])
    assert isinstance(reply, tuple)
    length, body = reply
    assert json.loads(body[:length])["outputs"][0]["parameters"]["binary_data_size"] == len(body) - length
    back = np.frombuffer(body[length:], np.float32).reshape(-1, 2)
    assert np.array_equal(back, array[:, :2], equal_nan=True)


def test_nan_in_a_binary_tensor_under_a_strict_schema() -> None:
    array = np.array([[1, math.nan, 2]], np.float32)
    tensor = {"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
    head = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(InvalidInput, match="finite"):
        CODEC.decode(memoryview(head + array.tobytes()), frames.BINARY, len(head))
