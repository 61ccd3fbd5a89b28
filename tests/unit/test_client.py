"""The client without a platform: conversions, addresses, errors, and what a flow does when requests get lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas
import polars
import pyarrow
import pytest

from headrace.client import artifacts, calls, flows, frames, steps, tensors
from headrace.client.config import Access, choose
from headrace.client.flows import Answer, Lost, Memory, Pause, Send
from headrace.core import errors
from headrace.core import resources as r
from headrace.core.schema import Signature, TensorSpec

TABLE = Signature((TensorSpec("input", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1,)),))
PAIR = Signature((TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT64", (-1, 1))), ())


class Frame:
    """What pandas and polars frames have in common."""

    def __init__(self, columns: Mapping[str, list[float]]) -> None:
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name: str) -> list[float]:
        return self._columns[name]

    def to_numpy(self) -> np.ndarray[Any, Any]:
        return np.column_stack(list(self._columns.values()))


class ArrowTable:
    """What Arrow tables have."""

    column_names = ("p", "q", "r")

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return np.array([1.0, 2.0]) if name == "p" else np.array([3.0, 4.0])


# ------------------------------------------------------------------------------------------------ conversions
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]),
        (np.arange(6.0).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.arange(6.0).reshape(3, 2).T, [[0, 2, 4], [1, 3, 5]]),
        ({"input": [[1, 2, 3]]}, [[1, 2, 3]]),
        (Frame({"p": [1, 2], "q": [3, 4], "r": [5, 6]}), [[1, 3, 5], [2, 4, 6]]),
        (ArrowTable(), [[1, 3, 3], [2, 4, 4]]),
        (np.zeros((0, 3)), []),
    ],
)
def test_whatever_holds_rows_becomes_the_models_tensor(rows: object, expected: list[Any]) -> None:
    (array,) = tensors.to_arrays(rows, TABLE)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.tolist() == expected


@pytest.mark.parametrize("rows", [{"a": [1.5], "b": [2]}, Frame({"b": [2], "a": [1.5]})])
def test_named_inputs_are_found_by_name(rows: object) -> None:
    a, b = tensors.to_arrays(rows, PAIR)
    assert (a.tolist(), b.tolist(), b.dtype) == ([1.5], [[2]], np.int64)


@pytest.mark.parametrize(
    ("rows", "signature", "field", "says"),
    [
        ([[1, 2]], TABLE, "input", "shape [1, 2], expected [-1, 3]"),
        ([["x", "y", "z"]], TABLE, "input", "not an array of FP32"),
        ([[1e39, 0, 0]], TABLE, "input", "1e+39 does not fit FP32"),
        ([[1], [1, 2]], TABLE, "input", "not an array"),
        ({"other": [[1, 2, 3]]}, TABLE, "input", "'input' is missing"),
        ([1, 2], PAIR, "rows", "give a dict of a, b"),
        ({"a": [1.0]}, PAIR, "b", "'b' is missing"),
        ({"a": [1.0], "b": [1], "c": [1]}, PAIR, "c", "no input 'c'"),
        ({"a": [1.0], "b": [1.5]}, PAIR, "b", "1.5 does not fit INT64"),
        ({"a": [1.0], "b": [2**70]}, PAIR, "b", "INT64"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(rows: object, signature: Signature, field: str, says: str) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        tensors.to_arrays(rows, signature)
    assert caught.value.field == field
    assert says in caught.value.message


COLUMNS = {"p": [1.0, 4.0], "q": [2.0, 5.0], "r": [3.0, 6.0]}


@pytest.mark.parametrize(
    "rows", [pandas.DataFrame(COLUMNS, index=["a", "b"]), polars.DataFrame(COLUMNS), pyarrow.table(COLUMNS)]
)
def test_frames_go_in_and_come_out_in_the_callers_library(rows: Any) -> None:
    (array,) = tensors.to_arrays(rows, TABLE)
    assert array.tolist() == [[1, 2, 3], [4, 5, 6]]
    outputs = {"label": np.array([b"no", b"yes"], object), "p": np.array([[0.25, 0.75], [1, 0]])}
    found = tensors.Prediction("m", "1", "", outputs, frames.origin(rows)).frame()
    assert type(found) is type(rows)
    expected = {"label": ["no", "yes"], "p_0": [0.25, 1.0], "p_1": [0.75, 0.0]}
    if isinstance(rows, pandas.DataFrame):
        assert list(found.index) == ["a", "b"]
        assert found.to_dict("list") == expected
    else:
        assert (found.to_dict(as_series=False) if isinstance(rows, polars.DataFrame) else found.to_pydict()) == expected


def test_a_frame_of_a_named_library_and_what_is_no_table() -> None:
    plain = tensors.Prediction("m", "1", "", {"y": np.zeros((2, 1))})
    assert plain.frame("polars").to_dict(as_series=False) == {"y": [0.0, 0.0]}
    with pytest.raises(errors.InvalidInput, match="came in no frame"):
        plain.frame()
    with pytest.raises(errors.InvalidInput, match="expected pandas, polars, pyarrow"):
        plain.frame("dask")  # type: ignore[arg-type]
    for outputs, says in (({"y": np.zeros((2, 2, 2))}, "is no column"), ({"y": np.zeros(2), "z": np.zeros(3)}, "rows")):
        with pytest.raises(errors.InvalidInput, match=says):
            tensors.Prediction("m", "1", "", outputs).frame("pandas")


def test_a_binary_reply_is_read_back_as_it_was_written() -> None:
    texts = np.array([b"", "h\u00e9".encode(), b"\0\xff"], object)
    spec = Signature((TensorSpec("t", "BYTES", (-1,)), TensorSpec("x", "FP64", (-1, 2))), ())
    body, headers = tensors.encode([texts, np.arange(6.0).reshape(3, 2)], spec, ["y"])
    length = int(headers["inference-header-content-length"])
    request = msgspec.json.decode(body[:length])
    assert request["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]
    head = msgspec.json.encode({"model_name": "m", "model_version": "4", "outputs": request["inputs"]})
    found = tensors.decode({"inference-header-content-length": str(len(head))}, head + body[length:])
    assert (found.model, found.version) == ("m", "4")
    assert found["t"].tolist() == texts.tolist()
    assert found["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found["x"].flags.writeable
    with pytest.raises(errors.InvalidInput, match="t, x"):
        _ = found.array


# ------------------------------------------------------------------------------------------------ addresses
def test_the_first_source_that_speaks_wins_and_another_platforms_key_stays_at_home() -> None:
    local: dict[str, str | None] = {"url": "http://l:8000/", "control_url": "http://l:8002", "api_key": "hr_local"}
    assert choose({}, {}, local) == {"url": "http://l:8000", "control_url": "http://l:8002", "api_key": "hr_local"}
    assert choose({"api_key": "hr_mine"}, local)["api_key"] == "hr_mine"
    assert choose({"url": "http://prod"}, local) == {"url": "http://prod"}
    assert choose({"url": "http://l:8000"}, local)["api_key"] == "hr_local"
    with pytest.raises(errors.InvalidInput, match="control_url"):
        choose({"control_url": "localhost:8002"})
    assert "hr_" not in repr(Access("http://a", "http://b", "hr_secret"))


# ------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize("code", errors.BY_CODE)
def test_a_problem_becomes_its_error(code: str) -> None:
    kind = errors.BY_CODE[code]
    problem = r.Problem("urn:x", "t", kind.status, "what is wrong", code, "a.b", "do this")
    with pytest.raises(kind) as caught:
        calls.read(r.Status, kind.status, msgspec.json.encode(problem))
    assert (caught.value.message, caught.value.field, caught.value.hint) == ("what is wrong", "a.b", "do this")


@pytest.mark.parametrize("content", [b"", b"<html>bad gateway</html>", b'{"error": 1}'])
def test_a_body_that_is_none_of_ours_is_an_error_all_the_same(content: bytes) -> None:
    with pytest.raises(errors.PlatformFault, match="502"):
        calls.read(r.Status, 502, content)


def test_inference_errors_carry_when_to_come_back() -> None:
    error = calls.inference_error(429, {"retry-after": "7"}, b'{"error": "used up"}')
    assert isinstance(error, errors.QuotaExceeded)
    assert (error.message, error.retry_after_s) == ("used up", 7.0)
    assert isinstance(calls.inference_error(418, {}, b""), errors.PlatformFault)


# ------------------------------------------------------------------------------------------------ flows
MODELS = Answer(200, {}, b'{"items": [], "next": null}')
REFUSED = Lost("http://c", "refused", True)
CUT = Lost("http://c", "cut", False)


def drive(flow: flows.Flow[Any], *answers: Answer | Lost) -> tuple[Any, list[Send]]:
    """Answer a flow's requests in turn; its pauses take no time."""
    left, sent, answer = list(answers), [], None
    try:
        while True:
            step = flow.send(answer)
            answer = None
            if isinstance(step, Send):
                sent.append(step)
                answer = left.pop(0)
            else:
                assert isinstance(step, Pause)
    except StopIteration as end:
        assert not left
        return end.value, sent


def test_a_platform_never_met_is_reported_at_once() -> None:
    with pytest.raises(errors.Unreachable) as caught:
        drive(flows.request(Memory(), calls.list_tenants()), REFUSED)
    assert "headrace up" in (caught.value.hint or "")


def test_a_control_plane_that_restarts_is_waited_for_and_asked_with_the_same_idempotency_key() -> None:
    call = calls.update_tenant("a", r.TenantUpdate(state="active"))
    tenant = r.Tenant("a", "active", r.Quota(), "2026-01-01T00:00:00Z")
    fine = Answer(200, {}, msgspec.json.encode(r.Outcome(tenant, r.ChangeRef(1))))
    found, sent = drive(flows.request(Memory(met=True), call), CUT, REFUSED, REFUSED, fine)
    assert found.result == tenant
    assert len({send.headers["idempotency-key"] for send in sent}) == 1


def test_what_may_have_been_done_and_cannot_be_repeated_is_not() -> None:
    call = calls.create_key("viewer", None, "")
    with pytest.raises(errors.Unreachable):
        drive(flows.request(Memory(met=True), call), CUT)
    key = r.Key("hr_1", "a", "viewer", "", "active", "2026-01-01T00:00:00Z")
    fine = Answer(200, {}, msgspec.json.encode(r.Outcome(r.KeyCreated(key, "hr_1_x"), r.ChangeRef(1))))
    assert drive(flows.request(Memory(met=True), call), REFUSED, fine)[0].result.key == key


def test_waiting_for_a_control_plane_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flows.request(Memory(met=True), calls.list_tenants())
    flow.send(None)
    now = time.monotonic()
    monkeypatch.setattr(steps.time, "monotonic", lambda: now + steps.RETRY_S + 1)
    with pytest.raises(errors.Unreachable):
        flow.send(REFUSED)


def test_a_list_is_read_to_its_last_page() -> None:
    page = r.Page(["x"], "c1")
    call: Any = calls.Call("GET", "/x", r.Page[str], query={"limit": "1"})
    found, sent = drive(
        flows.all_pages(Memory(), call),
        Answer(200, {}, msgspec.json.encode(page)),
        Answer(200, {}, msgspec.json.encode(r.Page(["y"]))),
    )
    assert found == ["x", "y"]
    assert sent[1].query == {"limit": "1", "cursor": "c1"}


def test_a_signature_that_no_longer_holds_is_asked_for_again() -> None:
    old, new = TABLE, Signature((TensorSpec("input", "FP64", (-1, 3)),), TABLE.outputs)
    reply = Answer(200, {}, b'{"model_name": "m", "model_version": "2", "outputs": []}')
    refused = Answer(400, {}, b'{"error": "datatype"}')
    memory = Memory({"m": old})
    metadata = Answer(200, {}, msgspec.json.encode(new))
    found, sent = drive(flows.predict(memory, "m", [1, 2, 3]), refused, metadata, reply)
    assert found.version == "2"
    assert b'"FP64"' in (sent[-1].content or b"")
    with pytest.raises(errors.InvalidInput):  # it still holds: the rows are at fault
        drive(flows.predict(memory, "m", [1, 2, 3]), refused, metadata)


def test_a_tenants_model_version_unit_and_deadline_reach_the_wire() -> None:
    reply = Answer(200, {}, b'{"model_name": "m", "outputs": []}')
    flow = flows.predict(Memory({"a/m@4": TABLE}), "a/m", [1, 2, 3], version=4, unit="u7", timeout_s=0.25)
    _, (send,) = drive(flow, reply)
    assert send.path == "/v2/models/a%2Fm/versions/4/infer"
    assert (send.headers["x-unit"], send.headers["x-request-timeout-ms"]) == ("u7", "250")


# ------------------------------------------------------------------------------------------------ artifacts
def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name, order in (("one", "ab"), ("two", "ba")):
        folder = tmp_path / name / "model"
        (folder / "__pycache__").mkdir(parents=True)
        (folder / "__pycache__" / name).write_text(name)
        for file in order:
            (folder / f"{file}.py").write_text(file)
        packed = artifacts.pack(folder)
        digests.append(packed.digest)
        packed.path.unlink()
        assert (packed.file_name, packed.engine, packed.temporary) == ("model.tar", "python", True)
    assert digests[0] == digests[1]


def test_the_same_estimator_gives_the_same_bytes() -> None:
    from sklearn.linear_model import LogisticRegression

    rows = np.arange(20.0).reshape(10, 2)
    found = []
    for _ in range(2):
        packed = artifacts.pack(LogisticRegression().fit(rows, rows[:, 0] > 8))
        found.append(packed.digest)
        packed.path.unlink()
    assert found[0] == found[1]


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match=r"nothing\.onnx"):
        artifacts.pack(tmp_path / "nothing.onnx")


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, headrace.cli.main; print(*{'numpy', 'httpx', 'litestar', 'sqlalchemy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == ""
