"""Zygotes with real processes: replicas forked from them are replicas like any other, and outlive them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.core.config import Settings
from headrace.core.specs import ReplicaSpec, ReplicaStatus
from headrace.core.zygote import Runtime, runtime_of
from headrace.deploy.node import Node
from headrace.deploy.wire import NodeCommand
from tests import models
from tests.conformance.test_fleet import spec

SAYS = """
import os
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

class Model:
    inputs = [("x", "FP32", (-1, 1))]
    outputs = [("y", "FP32", (-1, 1))]

    def load(self, folder):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            print(name, os.environ[name])
        print("blas", max(found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"))
        print("random", np.random.random())
        print("session", os.getsid(0) == os.getpid())

    def predict(self, inputs):
        return inputs["x"]
"""
Test = Callable[[Node], Coroutine[Any, Any, None]]


@asynccontextmanager
async def agent(folder: Path, **settings: Any) -> AsyncIterator[Node]:
    """A node's agent alone."""
    (folder / "logs").mkdir(exist_ok=True)
    given = Settings(data=str(folder), drain_s=5.0, **settings)
    node = Node(given, folder, folder, {"http": -1, "grpc": -1, "control": -1})
    try:
        yield node
    finally:
        node.stopping.set()
        await node.shut_down(asyncio.Event())


async def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < end, what
        await asyncio.sleep(0.01)


async def start(node: Node, wanted: ReplicaSpec, *states: str) -> ReplicaStatus:
    """Start a replica, and wait for its state, `ready` without others."""
    node.command(NodeCommand("start", wanted.id, wanted))
    record = node.replicas[wanted.id]
    await until(lambda: record.state in (states or ("ready",)), f"{wanted.id}: {record.state} {record.detail}")
    return record.status()


def run(folder: Path, test: Test, **settings: Any) -> None:
    async def main() -> None:
        async with agent(folder, **settings) as node:
            await test(node)

    asyncio.run(main())


def said(folder: Path, replica: str) -> dict[str, str]:
    """What the model `SAYS` printed."""
    lines = (folder / "logs" / f"{replica}.log").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines if not line.startswith("{"))


@pytest.mark.parametrize(
    ("make", "runtime"),
    [
        (models.echo_onnx, "onnx"),
        (models.classifier_xgboost, "xgboost"),
        (models.classifier_lightgbm, "lightgbm"),
        (models.classifier_skops, "sklearn"),
        (models.python_folder, "python"),
    ],
    ids=["onnx", "xgboost", "lightgbm", "sklearn", "python"],
)
def test_a_replica_of_every_runtime_is_forked(
    tmp_path: Path, make: Callable[[], models.Artifact], runtime: Runtime
) -> None:
    from headrace.server.examine import Examine, Examined, examine

    artifact = make()
    examined = examine(Examine(artifact.engine, str(artifact.save(tmp_path)), signature=artifact.signature))
    assert isinstance(examined, Examined), examined
    wanted = spec(tmp_path, "a", artifact)
    served = msgspec.structs.replace(wanted.versions[0], signature=examined.signature, options=examined.options)

    async def test(node: Node) -> None:
        ready = await start(node, msgspec.structs.replace(wanted, versions=(served,)))
        assert ready.origin == "zygote"
        assert {"start", "import", "verify", "load", "warm", "total"} == set(ready.timings_s)
        assert sum(ready.timings_s.values()) - ready.timings_s["total"] <= ready.timings_s["total"]
        (zygote,) = node.zygotes.statuses()
        assert (zygote.runtime, zygote.ready, zygote.detail) == (runtime, True, "")
        assert len(list(Path(f"/proc/{zygote.pid}/task").iterdir())) == 1, "what forks has one thread"
        # The node is its parent: what it ends in is seen as of any child.
        assert Path(f"/proc/{ready.pid}/stat").read_text().rpartition(") ")[2].split()[1] == str(os.getpid())
        os.kill(ready.pid, signal.SIGSEGV)
        record = node.replicas["a"]
        await until(lambda: record.state == "crashed", "the crash to be seen")
        assert record.detail == "signal SIGSEGV"

    run(tmp_path, test)


def test_threads_and_random_numbers_are_the_replicas_own(tmp_path: Path) -> None:
    async def test(node: Node) -> None:
        for name, threads in (("one", 1), ("two", 2), ("three", 2)):
            wanted = msgspec.structs.replace(spec(tmp_path, name, models.python_model(SAYS)), threads=threads)
            assert (await start(node, wanted)).origin == "zygote"
        one, two, three = (said(tmp_path, name) for name in ("one", "two", "three"))
        assert (one["OMP_NUM_THREADS"], one["blas"]) == ("1", "1")
        assert (two["OMP_NUM_THREADS"], two["OPENBLAS_NUM_THREADS"], two["blas"]) == ("2", "2", "2")
        assert len({one["random"], two["random"], three["random"]}) == 3
        assert one["session"] == "True"

    run(tmp_path, test)


def test_a_zygotes_death_means_nothing_to_its_replicas_and_another_takes_its_place(tmp_path: Path) -> None:
    async def test(node: Node) -> None:
        before = await start(node, spec(tmp_path, "a", models.echo_onnx()))
        (zygote,) = node.zygotes.statuses()
        os.kill(zygote.pid, signal.SIGKILL)
        # Whatever the zygote is doing just now, a replica that is wanted comes.
        await start(node, spec(tmp_path, "b", models.echo_onnx()))
        await until(lambda: node.zygotes.statuses()[0].ready, "another zygote")
        assert node.zygotes.statuses()[0].pid != zygote.pid
        assert (await start(node, spec(tmp_path, "c", models.echo_onnx()))).origin == "zygote"
        assert node.replicas["a"].status() == before, "untouched"
        os.kill(before.pid, signal.SIGABRT)
        await until(lambda: node.replicas["a"].state == "crashed", "its end to be seen without its zygote")
        assert node.replicas["a"].detail == "signal SIGABRT"

    run(tmp_path, test)


def test_without_a_zygote_a_replica_is_a_process_of_its_own(tmp_path: Path) -> None:
    async def off(node: Node) -> None:
        assert (await start(node, spec(tmp_path, "a", models.echo_onnx()))).origin == "process"
        assert node.zygotes.statuses() == []

    run(tmp_path, off, zygotes="off")


def test_what_cannot_be_forked_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that starts a thread while it is imported, as onnxruntime does where its telemetry is on."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading\n"
        "if sys.orig_argv[1:3] == ['-m', 'headrace.server.zygote']:\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    async def test(node: Node) -> None:
        assert (await start(node, spec(tmp_path, "a", models.echo_onnx()))).origin == "process"
        (zygote,) = node.zygotes.statuses()
        assert not zygote.ready
        assert zygote.detail.startswith("2 threads")
        await until(lambda: node.zygotes.statuses()[0].idle == 1, "a process that stands ready all the same")
        assert (await start(node, spec(tmp_path, "b", models.echo_onnx()))).origin == "idle"

    run(tmp_path, test, idle_processes=1)


def test_one_that_stands_ready_is_taken_and_replaced(tmp_path: Path) -> None:
    async def test(node: Node) -> None:
        node.zygotes.start(("onnx",))
        for name in ("a", "b"):
            await until(lambda: node.zygotes.statuses()[0].idle == 2, "two to stand ready")
            assert (await start(node, spec(tmp_path, name, models.echo_onnx()))).origin == "idle"
        assert "ready" in {record.state for record in node.replicas.values()}

    run(tmp_path, test, idle_processes=2)


def test_stopped_it_drains_and_exits_with_zero(tmp_path: Path) -> None:
    async def test(node: Node) -> None:
        pid = (await start(node, spec(tmp_path, "a", models.echo_onnx()))).pid
        node.command(NodeCommand("stop", "a"))
        await until(lambda: node.replicas["a"].state == "stopped", "the drain")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert not (tmp_path / "a").exists()

    run(tmp_path, test)


def test_what_a_replica_leaves_behind_is_ended_and_reaped(tmp_path: Path) -> None:
    model = models.python_model(
        "import subprocess, sys\n"
        "class Model:\n"
        "    inputs = [('x', 'FP32', (-1, 1))]\n"
        "    outputs = [('y', 'FP32', (-1, 1))]\n"
        "    def load(self, folder):\n"
        "        self.left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "        print('left', self.left.pid)\n"
        "    def predict(self, inputs):\n"
        "        return inputs['x']\n"
    )

    async def test(node: Node) -> None:
        ready = await start(node, spec(tmp_path, "a", model))
        left = int(said(tmp_path, "a")["left"])
        os.kill(ready.pid, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{left}").exists(), "what it left to be gone, and no zombie of ours")

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("engines", "threads", "runtime"),
    [
        (["onnx"], 4, "onnx"),
        (["onnx", "onnx"], 1, "onnx"),
        (["onnx", "xgboost"], 1, "python"),
        (["python"], 2, "python"),
        (["pipeline"], 1, "python"),
        (["sklearn"], 1, "sklearn"),
        (["sklearn"], 2, None),
        (["sklearn", "onnx"], 2, None),
    ],
)
def test_which_runtime(engines: list[str], threads: int, runtime: Runtime | None) -> None:
    assert runtime_of(engines, threads) == runtime
