"""Models that share processes, under load: evicted, killed, promoted, and one that hangs the process it shares."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.errors import Conflict, HeadraceError, InvalidInput, Unavailable
from headrace.core.resources import PackStatus
from tests import models
from tests.chaos.test_isolation import Load, condemned
from tests.polling import until

SETTINGS = {
    "SHARED_MEMORY_MB": "128",
    "PROMOTE_PER_S": "20",
    "PROMOTE_AFTER_S": "1",
    "DEMOTE_PER_S": "5",
    "DEMOTE_AFTER_S": "2",
}


def double(weights_mb: float = 0.0, loops: bool = False) -> bytes:
    """y = 2 x, x [-1, 1]; with weights that it does not need; `loops`: as often as x says."""
    nodes = [helper.make_node("Mul", ["x", "two"], ["doubled"])]
    constants = [numpy_helper.from_array(np.array(2, np.float32), "two")]
    last = "doubled"
    if weights_mb:
        big = np.random.default_rng(1).standard_normal((1, int(weights_mb * (1 << 18))), np.float32)
        constants += [numpy_helper.from_array(big, "w"), numpy_helper.from_array(np.array(0, np.float32), "zero")]
        nodes += [
            helper.make_node("MatMul", ["x", "w"], ["wide"]),
            helper.make_node("ReduceMean", ["wide"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", [last, "nothing"], ["weighed"]),
        ]
        last = "weighed"
    if loops:
        value = helper.make_tensor_value_info
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["in"], ["out"])],
            "body",
            [value("k", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("in", 1, ["n", 1])],
            [value("on", TensorProto.BOOL, []), value("out", 1, ["n", 1])],
        )
        nodes += [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["times"], to=TensorProto.INT64),
            helper.make_node("Loop", ["times", "", last], ["looped"], body=body),
        ]
        last = "looped"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    ends = [helper.make_tensor_value_info(name, 1, ["n", 1]) for name in ("x", "y")]
    return models.onnx_graph(nodes, ends[:1], ends[1:], constants)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The admin's, of a platform whose shared processes have little memory."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(f"HEADRACE_{name}", value)
        platform = Platform(str(tmp_path_factory.mktemp("packing")))
    try:
        yield platform.client
    finally:
        platform.stop()


def push(client: Client, folder: Path, name: str, content: bytes | None = None, **options: float) -> None:
    path = folder / "model.onnx"
    path.write_bytes(double() if content is None else content)
    client.push(name, path, **options)  # type: ignore[arg-type]


def packs(client: Client) -> list[PackStatus]:
    """The shared processes, once both are ready."""
    until(lambda: [pack.state for pack in client.status().packs] == ["ready", "ready"], 40)
    return client.status().packs


def actions(client: Client, model: str) -> list[str]:
    return [change.action for change in client.changes(model=model).items]


def test_versions_come_and_go_without_a_restart(client: Client, tmp_path: Path) -> None:
    push(client, tmp_path, "first")
    found = client.deploy("first@1", mode="shared")
    assert (found.mode, found.placed, found.instances, found.state) == ("shared", "shared", [], "ready")
    pids = {pack.pid for pack in packs(client)}
    push(client, tmp_path, "second")
    client.deploy("second@1", mode="shared")
    assert client.predict("second", [[4.0]]).array.tolist() == [[8.0]]
    until(lambda: client.deployments.show("second@1").resident is True)
    client.deployments.remove("second@1", force=True)
    until(lambda: {pack.versions for pack in client.status().packs} == {1})
    with pytest.raises(Unavailable):
        client.predict("second", [[4.0]])
    client.deploy("second@1", mode="shared")
    assert client.predict("second", [[5.0]]).array.tolist() == [[10.0]]
    assert {pack.pid for pack in packs(client)} == pids


def test_what_may_not_share_is_refused_with_the_field(client: Client, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_bytes(models.python_echo().content)
    client.push("code", tmp_path / "model.py")
    push(client, tmp_path, "wide", double(3.0))
    asked: list[tuple[str, dict[str, object], type[HeadraceError], str]] = [
        ("code@1", {"mode": "shared"}, InvalidInput, "mode"),
        ("code@1", {"mode": "auto"}, InvalidInput, "mode"),
        ("wide@1", {"mode": "shared", "replicas": 2}, InvalidInput, "replicas"),
        ("wide@1", {"mode": "shared", "threads": 2}, InvalidInput, "threads"),
        ("wide@1", {"mode": "shared", "memory_mb": 129}, InvalidInput, "memory_mb"),
        ("wide@1", {"mode": "shared", "memory_mb": 2}, Conflict, "memory_mb"),
    ]
    for reference, options, kind, field in asked:
        with pytest.raises(kind) as caught:
            client.deploy(reference, **options)  # type: ignore[arg-type]
        assert caught.value.field == field, (reference, options, caught.value.message)
    access = client.access
    environment = {**os.environ, "HEADRACE_URL": access.url, "HEADRACE_API_KEY": access.api_key or ""}
    environment["HEADRACE_CONTROL_URL"] = access.control_url
    for options, code, text in ((["--mode", "both"], 1, "mode"), (["--shared"], 0, "wide@1 ready: shared")):
        command = [sys.executable, "-m", "headrace.cli.main", "deploy", "wide@1", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code and text in done.stdout + done.stderr, done
    status = [sys.executable, "-m", "headrace.cli.main", "status"]
    shown = subprocess.run(status, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "SHARED PROCESS" in shown and "shared-0-" in shown


def test_evictions_under_traffic_cost_nobody_a_request(client: Client, tmp_path: Path) -> None:
    names = [f"heavy-{k}" for k in range(12)]
    for name in names:
        push(client, tmp_path, name, double(6.0))
        client.deploy(f"{name}@1", mode="shared")
    before = sum(pack.evictions for pack in packs(client))
    failures: list[str] = []

    def ask(seed: int) -> None:
        for k in range(60):
            name, value = names[(seed * 5 + k * 7) % 12], float(k)
            try:
                assert client.predict(name, [[value]]).array.tolist() == [[2 * value]]
            except Exception as error:
                failures.append(f"{name}: {error!r}")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    until(lambda: sum(pack.evictions for pack in client.status().packs) > before + 10)
    assert all(0 < pack.rss_bytes <= 128 << 20 for pack in client.status().packs)
    for name in names:
        client.deployments.remove(f"{name}@1", force=True)


@pytest.mark.timeout(180)
def test_the_end_of_a_shared_process_costs_nobody_a_request(client: Client, tmp_path: Path) -> None:
    push(client, tmp_path, "survivor")
    client.deploy("survivor@1", mode="shared")
    with Load(client, "survivor") as load:
        for _ in range(2):
            for pack in packs(client):
                os.kill(pack.pid, signal.SIGKILL)
                until(lambda pid=pack.pid: pid not in {p.pid for p in client.status().packs}, 30)  # type: ignore[misc]
                packs(client)
                until(lambda: client.deployments.show("survivor@1").ready == 2, 30)
                answered = load.answered
                until(lambda more=answered + 20: load.answered > more or bool(load.failures), 30)  # type: ignore[misc]
    assert load.failures == []
    assert client.deployments.show("survivor@1").placed == "shared", "it was nobody's fault"


@pytest.mark.timeout(120)
def test_load_promotes_and_its_end_demotes_without_losing_a_request(client: Client, tmp_path: Path) -> None:
    push(client, tmp_path, "rising")
    assert client.deploy("rising@1", mode="auto").placed == "shared"
    with Load(client, "rising") as load:
        until(lambda: client.deployments.show("rising@1").placed == "dedicated", 30)
        until(lambda: [i.state for i in client.deployments.show("rising@1").instances] == ["ready"], 30)
        until(lambda: "rising@1" not in served_shared(client), 30)
        answered = load.answered
        until(lambda: load.answered > answered + 50 or bool(load.failures), 30)
    found = client.deployments.show("rising@1")
    assert "requests/s" in found.placed_why
    slow: list[str] = []
    end = time.monotonic() + 40
    while client.deployments.show("rising@1").instances and time.monotonic() < end:
        try:
            assert client.predict("rising", [[3.0]]).array.tolist() == [[6.0]]
        except Exception as error:
            slow.append(repr(error))
        threading.Event().wait(0.3)
    found = client.deployments.show("rising@1")
    assert (found.placed, found.instances, load.failures, slow) == ("shared", [], [], [])
    assert {"deployment.promote", "deployment.demote"} <= set(actions(client, "rising"))
    client.deployments.remove("rising@1", force=True)


def served_shared(client: Client) -> set[str]:
    return {f"{d.model}@{d.version}" for d in client.status().deployments if d.resident is not None}


@pytest.mark.timeout(180)
def test_a_model_that_hangs_what_it_shares_is_served_apart(client: Client, tmp_path: Path) -> None:
    push(client, tmp_path, "looping", double(loops=True), run_limit_s=1.0)
    push(client, tmp_path, "beside")
    for name in ("looping", "beside"):
        client.deploy(f"{name}@1", mode="shared")
    packs(client)
    assert client.predict("looping", [[3.0]]).array.tolist() == [[6.0]]
    with Load(client, "beside") as load:
        with pytest.raises(HeadraceError):
            client.predict("looping", [[1e15]], timeout_s=60.0)
        until(lambda: client.deployments.show("looping@1").placed == "isolated", 40)
        until(lambda: [i.state for i in client.deployments.show("looping@1").instances] == ["ready"], 40)
        assert client.predict("looping", [[4.0]]).array.tolist() == [[8.0]]
    assert load.failures == []
    assert condemned(client, "looping")
    assert "deployment.isolate" in actions(client, "looping")
    assert "ended shared processes" in client.deployments.show("looping@1").placed_why
