"""What every fleet must do, on real replicas. A new fleet joins by adding its opening to `FLEETS`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.core.config import Settings
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions, ReplicaSpec, ReplicaStatus, ServedVersion
from headrace.deploy.fleet import Fleet
from headrace.deploy.local import LocalFleet
from headrace.deploy.node import Node
from headrace.server.examine import Examine, Examined, examine
from tests import models

Open = Callable[[], AbstractAsyncContextManager[Fleet]]
"""Another client of the same fleet, as a control plane that has started again is."""
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),))


@asynccontextmanager
async def local(folder: Path) -> AsyncIterator[Open]:
    """A node's agent without control plane and routers."""
    (folder / "logs").mkdir()
    node = Node(Settings(data=str(folder), drain_s=5.0), folder, folder, {"http": -1, "grpc": -1, "control": -1})
    server = await asyncio.start_unix_server(node.connected, str(folder / "node.sock"))
    telling = asyncio.create_task(node.tell())

    @asynccontextmanager
    async def connect() -> AsyncIterator[Fleet]:
        fleet = LocalFleet(f"unix:{folder}/node.sock")
        await fleet.open()
        yield fleet
        await fleet.close()

    try:
        yield connect
    finally:
        node.stopping.set()
        await node.shut_down(asyncio.Event())
        async with asyncio.timeout(5):
            while node._writers:  # it hears the client's end on the next turns of the loop
                await asyncio.sleep(0)
        telling.cancel()
        server.close()


FLEETS = {"local": local}


@pytest.fixture(params=FLEETS)
def on(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Callable[[Open], Coroutine[Any, Any, None]]], None]:
    """Run a test on a fleet."""

    async def within(test: Callable[[Open], Coroutine[Any, Any, None]]) -> None:
        async with FLEETS[request.param](tmp_path) as connect:
            await test(connect)

    return lambda test: asyncio.run(within(test))


def spec(folder: Path, name: str, artifact: models.Artifact, digest: str = "") -> ReplicaSpec:
    path = artifact.save(folder)
    served = ServedVersion(
        0,
        "default/m",
        1,
        artifact.engine,
        str(path),
        digest or artifact.digest,
        artifact.signature or SIGNATURE,
        artifact.options or EngineOptions(),
    )
    return ReplicaSpec(name, f"unix:{folder}/{name}", (served,), drain_s=5.0)


def find(fleet: Fleet, name: str) -> ReplicaStatus | None:
    return next((one for one in fleet.statuses() if one.spec.id == name), None)


async def until(fleet: Fleet, name: str, *states: str, seconds: float = 60.0) -> ReplicaStatus:
    """Wait, by `watch` alone, for a replica's state."""
    changed = asyncio.Event()
    fleet.watch(changed.set)
    async with asyncio.timeout(seconds):
        while (one := find(fleet, name)) is None or one.state not in states:
            await changed.wait()
            changed.clear()
    return one


async def until_gone(fleet: Fleet, name: str) -> None:
    changed = asyncio.Event()
    fleet.watch(changed.set)
    async with asyncio.timeout(10):
        while find(fleet, name) is not None:
            await changed.wait()
            changed.clear()


def test_a_replica_starts_drains_stops_and_is_forgotten(on: Any, tmp_path: Path) -> None:
    async def test(connect: Open) -> None:
        async with connect() as fleet:
            wanted = spec(tmp_path, "a", models.echo_onnx())
            await fleet.start(wanted)
            ready = await until(fleet, "a", "ready")
            assert ready.spec == wanted and ready.pid > 0 and ready.timings_s["load"] > 0
            _, writer = await asyncio.open_unix_connection(str(tmp_path / "a"))
            writer.close()
            await fleet.start(wanted)
            await fleet.forget("a")  # one that runs is not forgotten
            await fleet.stop("nobody")
            await fleet.forget("nobody")
            await fleet.stop("a")
            await until(fleet, "a", "stopped")
            assert [one.pid for one in fleet.statuses()] == [ready.pid], "a second start changes nothing"
            assert not (tmp_path / "a").exists()
            with pytest.raises(ProcessLookupError):
                os.kill(ready.pid, 0)
            await fleet.forget("a")
            await until_gone(fleet, "a")

    on(test)


@pytest.mark.parametrize("make", [models.echo_onnx, models.classifier_xgboost, models.classifier_lightgbm])
def test_a_replica_holds_its_own_engine_and_no_more_threads_than_it_is_given(
    on: Any, tmp_path: Path, make: Callable[[], models.Artifact]
) -> None:
    async def test(connect: Open) -> None:
        artifact = make()
        examined = examine(Examine(artifact.engine, str(artifact.save(tmp_path))))
        assert isinstance(examined, Examined)
        async with connect() as fleet:
            wanted = spec(tmp_path, "a", replace(artifact, signature=examined.signature, options=examined.options))
            wanted_threads = 3
            await fleet.start(msgspec.structs.replace(wanted, threads=wanted_threads))
            replica = Path(f"/proc/{(await until(fleet, 'a', 'ready')).pid}")
            ours = 3  # the first, the watchdog's, the one that watches standard input
            others = 2 * (wanted_threads - 1)  # NumPy's and the engine's, which count the caller's
            assert len(list((replica / "task").iterdir())) <= ours + others
            maps = (replica / "maps").read_text()
            libraries = {
                name for name in ("onnxruntime", "xgboost", "lightgbm", "sklearn", "scipy") if f"/{name}/" in maps
            }
            assert libraries == {"onnxruntime" if artifact.engine == "onnx" else artifact.engine}
            resident = re.search(r"VmRSS:\s+(\d+) kB", (replica / "status").read_text())
            assert resident and int(resident[1]) * 1024 - len(artifact.content) <= 120e6

    on(test)


def test_a_killed_replica_is_told_of_with_the_reason(on: Any, tmp_path: Path) -> None:
    async def test(connect: Open) -> None:
        async with connect() as fleet:
            for name in ("old", "young"):
                await fleet.start(spec(tmp_path, name, models.echo_onnx()))
            victim = await until(fleet, "old", "ready")
            await until(fleet, "young", "ready")
            assert [one.spec.id for one in fleet.statuses()] == ["old", "young"]
            os.kill(victim.pid, signal.SIGKILL)
            crashed = await until(fleet, "old", "crashed")
            assert "SIGKILL" in crashed.detail
            other = find(fleet, "young")
            assert other is not None and other.state == "ready"

    on(test)


@pytest.mark.parametrize(
    ("artifact", "digest", "says"),
    [
        (models.raises_at_load(), "", "RuntimeError: no weights"),
        (models.echo_onnx(), "0" * 64, "the artifact is damaged"),
    ],
    ids=["raises", "tampered"],
)
def test_one_that_cannot_serve_says_why(
    on: Any, tmp_path: Path, artifact: models.Artifact, digest: str, says: str
) -> None:
    async def test(connect: Open) -> None:
        async with connect() as fleet:
            await fleet.start(spec(tmp_path, "a", artifact, digest))
            ended = await until(fleet, "a", "failed", "crashed")
            assert ended.state == "failed"
            assert says in ended.detail

    on(test)


def test_what_runs_goes_on_without_its_client_and_is_found_again(on: Any, tmp_path: Path) -> None:
    async def test(connect: Open) -> None:
        async with connect() as fleet:
            await fleet.start(spec(tmp_path, "a", models.echo_onnx()))
            before = await until(fleet, "a", "ready")
        async with connect() as fleet:
            assert find(fleet, "a") == before, "known as soon as the fleet is open"
            await fleet.stop("a")
            await until(fleet, "a", "stopped")

    on(test)


def test_it_tells_its_devices(on: Any, tmp_path: Path) -> None:
    async def test(connect: Open) -> None:
        async with connect() as fleet:
            devices = fleet.devices()
            assert devices and len({device.id for device in devices}) == len(devices)
            assert all(device.memory_mb > 0 and device.compute > 0 and device.tier for device in devices)

    on(test)
