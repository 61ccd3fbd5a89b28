"""tritonclient's gRPC clients, unchanged, against a real platform."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from headrace.client import calls
from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.resources import ModelUpdate, Quota
from headrace.deploy.node import NodeInfo
from headrace.router.grpc_api import health_pb2
from tests import models

KINDS = """
    class Model:
        inputs = [("floats", "FP32", (-1, 2)), ("ids", "INT64", (-1,)), ("flags", "BOOL", (-1,)),
                  ("texts", "BYTES", (-1,)), ("halves", "FP16", (-1,))]
        outputs = [(f"{name}_out", datatype, shape) for name, datatype, shape in inputs]

        def predict(self, inputs):
            return {f"{name}_out": value for name, value in inputs.items()}
"""


def until(true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def put(name: str, values: Any, datatype: str = "FP32") -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def row(value: float = 1.5) -> list[triton.InferInput]:
    return [put("x", np.array([[value]], np.float32))]


@pytest.fixture
def triton_client(platform: Platform) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(platform.grpc_url) as found:
        yield found


@pytest.fixture
def headers(platform: Platform) -> dict[str, str]:
    return bearer(platform.client.access.api_key)


def push(client: Client, name: str, artifact: models.Artifact, tmp_path: Path) -> str:
    version = client.push(name, artifact.named(tmp_path)).result.version
    client.deploy(f"{name}@{version}", traffic=100)
    return name


class Gate:
    """A model, y = x, whose run for x = 7 does not end before the gate is opened."""

    def __init__(self, client: Client, name: str, folder: Path) -> None:
        self.running = folder / "running"
        """Is there once such a run has begun."""
        self._file = folder / "open"
        begun, goes_on = f"open({str(self.running)!r}, 'w').close()", f"os.path.exists({str(self._file)!r})"
        waits = f"while (x == 7).any() and not ({begun} or {goes_on}): time.sleep(0.01)"
        push(client, name, models.python_echo(predict=waits), folder)

    def open(self) -> None:
        self._file.touch()


def limited_to(client: Client, tenant: str, requests: int, *granted: str) -> dict[str, str]:
    """A new tenant that may have so many requests in flight, as its headers."""
    client.call(calls.create_tenant(tenant, Quota(1e6, 1e6, requests)))
    for model in granted:
        client.call(calls.grant(model, tenant))
    return bearer(client.call(calls.create_key("viewer", tenant, "")).result.text)


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as error:
        call()
    assert "Traceback" not in str(error.value)
    return error.value.status().removeprefix("StatusCode."), error.value.message()


# ------------------------------------------------------------------------------------------------ inference
def test_every_kind_of_tensor_comes_back_as_it_went(
    triton_client: triton.InferenceServerClient, client: Client, headers: dict[str, str], tmp_path: Path
) -> None:
    push(client, "kinds", models.python_model(KINDS), tmp_path)
    sent = {
        "floats": (np.array([[1.5, -2], [3e38, 0]], np.float32), "FP32"),
        "ids": (np.array([2**62, -1], np.int64), "INT64"),
        "flags": (np.array([True, False]), "BOOL"),
        "texts": (np.array(["späť".encode(), b"\x00\xff"], object), "BYTES"),
        "halves": (np.array([0.5, 65504], np.float16), "FP16"),
    }
    inputs = [put(name, values, datatype) for name, (values, datatype) in sent.items()]
    for compression in (None, "gzip", "deflate"):
        result = triton_client.infer(
            "kinds", inputs, headers=headers, request_id="it", compression_algorithm=compression
        )
        assert result.get_response().id == "it"
        for name, (values, datatype) in sent.items():
            assert np.array_equal(result.as_numpy(f"{name}_out"), values), name
            assert result.get_output(f"{name}_out").datatype == datatype
    asked = [triton.InferRequestedOutput("texts_out"), triton.InferRequestedOutput("floats_out")]
    result = triton_client.infer("kinds", inputs, outputs=asked, headers=headers)
    assert [output.name for output in result.get_response().outputs] == ["texts_out", "floats_out"]
    assert result.as_numpy("floats_out")[0, 0] == 1.5
    assert result.as_numpy("ids_out") is None


@pytest.mark.parametrize(
    ("inputs", "options", "code", "says"),
    [
        (row(), {"model_name": "none"}, "NOT_FOUND", "model 'none' does not exist"),
        (row(), {"model_version": "99"}, "NOT_FOUND", "model 'echo' has no deployed version '99'"),
        ([put("y", np.ones((1, 1), np.float32))], {}, "INVALID_ARGUMENT", "unknown input 'y'"),
        ([put("x", np.ones((1, 1)), "FP64")], {}, "INVALID_ARGUMENT", "datatype 'FP64', expected FP32"),
        ([put("x", np.ones((1, 3), np.float32))], {}, "INVALID_ARGUMENT", "shape [1, 3], expected [-1, 1]"),
        (row(float("nan")), {}, "INVALID_ARGUMENT", "input 'x': values must be finite"),
        ([], {}, "INVALID_ARGUMENT", "input 'x' is missing"),
        (row(), {"outputs": [triton.InferRequestedOutput("z")]}, "INVALID_ARGUMENT", "unknown output 'z'"),
        (row(), {"outputs": [triton.InferRequestedOutput("y", 3)]}, "INVALID_ARGUMENT", "classification"),
        (row(), {"sequence_id": 7}, "INVALID_ARGUMENT", "sequences are not supported"),
        (row(), {"timeout": -1}, "INVALID_ARGUMENT", "parameters.timeout: -1"),
        (row(), {"headers": {}}, "UNAUTHENTICATED", "authorization: Bearer hr_"),
        (row(), {"headers": bearer("hr_nobody")}, "UNAUTHENTICATED", "one that nobody holds"),
    ],
)
def test_what_is_wrong_is_told(
    triton_client: triton.InferenceServerClient,
    echo: str,
    headers: dict[str, str],
    inputs: list[triton.InferInput],
    options: dict[str, Any],
    code: str,
    says: str,
) -> None:
    given = {"model_name": echo, "inputs": inputs, "headers": headers, **options}
    found, message = refused(lambda: triton_client.infer(**given))
    assert found == code
    assert says in message


def test_a_message_or_method_that_is_none(platform: Platform) -> None:
    with grpc.insecure_channel(platform.grpc_url) as channel:

        def fails(method: str, data: bytes) -> tuple[Any, str]:
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(data, timeout=10)
            return error.value.code(), error.value.details()

        for method in ("ModelInfer", "ModelMetadata"):
            code, message = fails(method, b"\xff\xff rubbish")
            assert (code, message) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the message is no inference.{method}Request",
            )
        code, message = fails("SystemSharedMemoryRegister", b"")
        assert code == grpc.StatusCode.UNIMPLEMENTED
        assert "SystemSharedMemoryRegister is not offered" in message


def test_another_tenants_model_needs_a_grant_and_quotas_hold(
    platform: Platform, client: Client, triton_client: triton.InferenceServerClient, echo: str
) -> None:
    client.call(calls.create_tenant("grpc-guest", Quota(0.001, 2.0, 100)))
    mine = bearer(client.call(calls.create_key("viewer", "grpc-guest", "")).result.text)
    code, message = refused(lambda: triton_client.infer(echo, row(), headers=mine))
    assert (code, message) == ("PERMISSION_DENIED", f"model {echo!r} belongs to another tenant")
    assert refused(lambda: triton_client.get_model_metadata(echo, headers=mine))[0] == "PERMISSION_DENIED"
    assert refused(lambda: triton_client.unload_model(echo, headers=mine))[0] in ("PERMISSION_DENIED", "NOT_FOUND")
    client.call(calls.grant(echo, "grpc-guest"))
    for _ in range(2):
        assert triton_client.infer(echo, row(), headers=mine).as_numpy("y")[0, 0] == 1.5
    until(lambda: _is_limited(platform, echo, mine), "the quota to be used up", 5)


def _is_limited(platform: Platform, model: str, headers: dict[str, str]) -> bool:
    """Whether the next request is refused for its tenant's limit, by one that would be refused anyway."""
    request = triton.service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[b""])
    with grpc.insecure_channel(platform.grpc_url) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as error:
            call(request.SerializeToString(), metadata=tuple(headers.items()), timeout=10)
    if error.value.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value
        return False
    assert ("retry-after", "1") in [tuple(pair) for pair in error.value.trailing_metadata()]
    return True


def test_deadlines_hold_on_both_sides(
    triton_client: triton.InferenceServerClient, client: Client, headers: dict[str, str], tmp_path: Path
) -> None:
    gate = Gate(client, "late", tmp_path)
    code, _ = refused(lambda: triton_client.infer("late", row(7), headers=headers, client_timeout=0.2))
    assert code == "DEADLINE_EXCEEDED"
    code, message = refused(lambda: triton_client.infer("late", row(7), headers=headers, timeout=200_000))
    assert (code, message) == ("DEADLINE_EXCEEDED", "the deadline passed before an answer was ready")
    gate.open()
    assert triton_client.infer("late", row(7), headers=headers, client_timeout=60).as_numpy("y")[0, 0] == 7


def test_a_cancelled_request_is_not_run(platform: Platform, client: Client, tmp_path: Path, echo: str) -> None:
    """With two in flight the tenant's limit is reached; the second, cancelled while it waits for the first, is gone
    from the router and from the replica's queue."""
    gate = Gate(client, "queue", tmp_path)
    mine = limited_to(client, "grpc-two", 2, "queue", echo)

    async def counts(server: triton_aio.InferenceServerClient) -> tuple[int, int]:
        found = (await server.get_inference_statistics("queue", headers=mine)).model_stats[0]
        return found.inference_stats.success.count, found.inference_count

    async def work() -> None:
        async with triton_aio.InferenceServerClient(platform.grpc_url) as server, asyncio.timeout(30):
            before = await counts(server)
            first = asyncio.create_task(server.infer("queue", row(7), headers=mine))
            while not gate.running.exists():  # or the second might join its batch
                await asyncio.sleep(0.01)
            second = asyncio.create_task(server.infer("queue", row(7), headers=mine))
            while not await asyncio.to_thread(_is_limited, platform, echo, mine):
                assert not (first.done() or second.done())
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            while await asyncio.to_thread(_is_limited, platform, echo, mine):
                assert not first.done()
            gate.open()
            await first
            await server.infer("queue", row(), headers=mine)
            after = await counts(server)
            assert (after[0] - before[0], after[1] - before[1]) == (2, 2)

    asyncio.run(work())


def test_streams_answer_each_request_in_order(
    triton_client: triton.InferenceServerClient, echo: str, headers: dict[str, str]
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton_client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
    for k in range(600):  # more than may be on their way at once
        name = "none" if k % 100 == 50 else echo
        triton_client.async_stream_infer(name, row(k), request_id=str(k))
    for k in range(600):
        result, error = answers.get(timeout=20)
        if k % 100 == 50:
            assert result is None and "model 'none' does not exist" in str(error)
        else:
            assert error is None, error
            assert (result.get_response().id, result.as_numpy("y")[0, 0]) == (str(k), k)
    triton_client.async_stream_infer(echo, row(), enable_empty_final_response=True)
    result, _ = answers.get(timeout=20)
    assert result.get_response().parameters["triton_final_response"].bool_param
    triton_client.stop_stream()


def test_asyncio_client_and_stream(platform: Platform, echo: str, headers: dict[str, str]) -> None:
    async def work() -> None:
        async with triton_aio.InferenceServerClient(platform.grpc_url) as server, asyncio.timeout(30):
            results = await asyncio.gather(*(server.infer(echo, row(k), headers=headers) for k in range(200)))
            assert [result.as_numpy("y")[0, 0] for result in results] == list(range(200))

            async def requests() -> Any:
                for k in range(20):
                    yield {"model_name": echo if k != 7 else "none", "inputs": row(k), "request_id": str(k)}

            seen = []
            async for result, error in server.stream_infer(requests(), headers=headers):
                seen.append(None if error else int(result.as_numpy("y")[0, 0]))
            assert seen == [None if k == 7 else k for k in range(20)]

    asyncio.run(work())


# ------------------------------------------------------------------------------------------------ the rest
def test_server_and_model_tell_what_they_are(
    triton_client: triton.InferenceServerClient, echo: str, headers: dict[str, str]
) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready(echo, headers=headers)
    assert triton_client.is_model_ready(echo, "1", headers=headers)
    server = triton_client.get_server_metadata()
    assert server.name == "headrace"
    assert "binary_tensor_data" in server.extensions
    metadata = triton_client.get_model_metadata(echo, headers=headers, as_json=True)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "1"]}]
    assert (metadata["platform"], metadata["versions"]) == ("onnxruntime_onnx", ["1"])
    config = triton_client.get_model_config(echo, headers=headers).config
    assert (config.name, config.backend) == (echo, "onnx")
    assert config.input[0].data_type == triton.model_config_pb2.TYPE_FP32
    assert list(config.output[0].dims) == [-1, 1]

    def count() -> int:
        stats = triton_client.get_inference_statistics(echo, "1", headers=headers).model_stats
        return int(stats[0].inference_stats.success.count)

    before = count()
    triton_client.infer(echo, row(), headers=headers)
    assert count() == before + 1
    names = {row.name for row in triton_client.get_inference_statistics(headers=headers).model_stats}
    assert echo in names


def test_repository_index_unload_and_load(
    triton_client: triton.InferenceServerClient, client: Client, headers: dict[str, str]
) -> None:
    version = client.push("shelf", models.echo_onnx(3.0).content).result.version
    client.deploy(f"shelf@{version}")

    def states() -> dict[str, str]:
        index = triton_client.get_model_repository_index(headers=headers)
        return {entry.name: entry.state for entry in index.models}

    assert states()["shelf"] == "READY"
    viewer = bearer(client.call(calls.create_key("viewer", "default", "")).result.text)
    assert refused(lambda: triton_client.unload_model("shelf", headers=viewer))[0] == "PERMISSION_DENIED"
    code, message = refused(lambda: triton_client.load_model("shelf", headers=headers, config="{}"))
    assert code == "INVALID_ARGUMENT" and "parameters.config" in message
    assert refused(lambda: triton_client.load_model("none", headers=headers))[0] == "NOT_FOUND"
    triton_client.unload_model("shelf", headers=headers)
    until(lambda: "shelf" not in states(), "the model to be unloaded")
    code, message = refused(lambda: triton_client.infer("shelf", row(), headers=headers))
    assert code == "UNAVAILABLE" and "model 'shelf'" in message
    assert not triton_client.is_model_ready("shelf", headers=headers)
    triton_client.load_model("shelf", headers=headers)
    until(lambda: states().get("shelf") == "READY", "the model to be loaded")
    assert triton_client.infer("shelf", row(), headers=headers).as_numpy("y")[0, 0] == 4.5


def test_health_is_told_and_watched(platform: Platform) -> None:
    kinds = health_pb2.HealthCheckResponse

    def ask(name: str) -> bytes:
        return health_pb2.HealthCheckRequest(service=name).SerializeToString()

    with grpc.insecure_channel(platform.grpc_url) as channel:
        check, watch = (channel.unary_unary, "Check"), (channel.unary_stream, "Watch")
        check, watch = (
            make(f"/grpc.health.v1.Health/{name}", response_deserializer=kinds.FromString)
            for make, name in (check, watch)
        )
        for name in ("", "inference.GRPCInferenceService"):
            assert check(ask(name), timeout=10).status == kinds.SERVING
        with pytest.raises(grpc.RpcError) as error:
            check(ask("other"), timeout=10)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        for name, status in (("", kinds.SERVING), ("other", kinds.SERVICE_UNKNOWN)):
            watching = watch(ask(name), timeout=10)
            assert next(watching).status == status
            watching.cancel()


def test_the_largest_request_is_the_models(platform: Platform, client: Client, headers: dict[str, str]) -> None:
    version = client.push("large", models.echo_onnx(2.0).content).result.version
    client.deploy(f"large@{version}")
    rows = np.zeros((17 << 20, 1), np.float32)  # 68 MiB
    with triton.InferenceServerClient(platform.grpc_url) as server:
        client.call(calls.update_model("large", ModelUpdate(body_max_bytes=1000)))
        code, message = refused(lambda: server.infer("large", [put("x", rows[:1000])], headers=headers))
        assert code == "RESOURCE_EXHAUSTED" and "the model takes at most 1000" in message
        assert refused(lambda: server.infer("large", [put("x", rows)], headers=headers))[0] == "RESOURCE_EXHAUSTED"
        client.call(calls.update_model("large", ModelUpdate(body_max_bytes=100 << 20)))

    def taken() -> bool:
        with triton.InferenceServerClient(platform.grpc_url) as server:
            try:
                result = server.infer("large", [put("x", rows)], headers=headers)
            except InferenceServerException as error:
                assert error.status() in ("StatusCode.RESOURCE_EXHAUSTED", "StatusCode.UNAVAILABLE")
                return False
            return bool((result.as_numpy("y") == 2).all())

    until(taken, "the higher limit")


# ------------------------------------------------------------------------------------------------ under load
def test_swaps_and_rollbacks_under_load_lose_nothing(platform: Platform, client: Client) -> None:
    name = "swapped"
    for version in (1.0, 2.0):
        number = client.push(name, models.echo_onnx(version).content).result.version
        client.deploy(f"{name}@{number}", traffic=100 if version == 1.0 else None)
    headers = bearer(platform.client.access.api_key)
    answers: list[tuple[float, str]] = []
    """(when it was sent, version)."""
    changes: list[tuple[float, str]] = []
    """(when it was acknowledged, the version that serves from then on)."""

    async def sender(server: triton_aio.InferenceServerClient, done: asyncio.Event) -> None:
        while not done.is_set():
            sent = time.monotonic()
            result = await server.infer(name, row(1.0), headers=headers)
            version = result.get_response().model_version
            assert result.as_numpy("y")[0, 0] == 1.0 + float(version)
            answers.append((sent, version))

    def change() -> None:
        for k in range(4):
            assert client.set_traffic(name, {2: 100}).change.effective
            changes.append((time.monotonic(), "2"))
            if k == 1:
                client.deploy(f"{name}@1", replicas=2)
            assert client.rollback(name).change.effective
            changes.append((time.monotonic(), "1"))
            if k == 2:
                client.deploy(f"{name}@1", replicas=1)

    async def work() -> None:
        done = asyncio.Event()
        async with triton_aio.InferenceServerClient(platform.grpc_url) as server:
            senders = [asyncio.create_task(sender(server, done)) for _ in range(8)]
            await asyncio.to_thread(change)
            done.set()
            await asyncio.gather(*senders)

    asyncio.run(work())
    assert {version for _, version in answers} == {"1", "2"}
    for (after, version), (before, _) in zip(changes, [*changes[1:], (float("inf"), "")], strict=True):
        # Up to the next change's request, which came at some time after this one's acknowledgement.
        first = [served for sent, served in answers if after < sent < before][:1]
        assert first in ([], [version]), "an old version answered after the change was acknowledged"


def test_told_to_stop_the_router_finishes_what_it_has(
    platform: Platform, client: Client, headers: dict[str, str], echo: str, tmp_path: Path
) -> None:
    gate = Gate(client, "lasting", tmp_path)
    mine = limited_to(client, "grpc-one", 1, "lasting", echo)

    def router() -> int:
        return next(router.pid for router in client.status().routers if router.id == "router-grpc")

    def told() -> list[int]:
        return msgspec.json.decode((platform.folder / "node.json").read_bytes(), type=NodeInfo).router_pids

    before = router()
    assert before in told()
    with triton.InferenceServerClient(platform.grpc_url) as server:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        idle: queue.Queue[tuple[Any, Any]] = queue.Queue()
        server.start_stream(lambda result, error: idle.put((result, error)), headers=headers)
        server.async_stream_infer(echo, row())
        assert idle.get(timeout=20)[1] is None
        server.async_infer("lasting", row(7), lambda result, error: answers.put((result, error)), headers=mine)
        until(lambda: _is_limited(platform, echo, mine), "the request to be at its replica")
        os.kill(before, signal.SIGTERM)
        assert "open another stream" in str(idle.get(timeout=20)[1])
        gate.open()
        result, error = answers.get(timeout=20)
        assert error is None and result.as_numpy("y")[0, 0] == 7
        server.stop_stream()

    def back() -> bool:
        with triton.InferenceServerClient(platform.grpc_url) as server:
            try:
                return server.infer(echo, row(), headers=headers).as_numpy("y")[0, 0] == 1.5
            except InferenceServerException as error:
                assert error.status() == "StatusCode.UNAVAILABLE"
                return False

    until(lambda: before not in told() and back(), "another router on the same port")
    until(lambda: router() != before, "the control plane to know it")
