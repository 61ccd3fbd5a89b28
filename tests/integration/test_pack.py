"""A pack by itself: its catalog, loads that are asked for, evictions, what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import helper, numpy_helper

from headrace.core import frames
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import (
    CatalogChange,
    CatalogItem,
    EngineOptions,
    EntryEvent,
    PackSpec,
    ReplicaEvent,
    ReplicaSpec,
    ServedVersion,
)
from headrace.core.telemetry import rss_bytes
from headrace.server.engines.load import preload
from headrace.server.engines.port import Engine
from headrace.server.link import RouterLink
from headrace.server.main import Replica, load_packed
from headrace.server.pack import Pack
from headrace.server.packed import PackedSlot
from tests import models

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),))
LARGE_MB = 8


class Loads:
    """Loads as a replica does, slowly; counts how many at once."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.most = self.total = 0
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self, served: ServedVersion, runs: int) -> tuple[Engine, float]:
        with self._lock:
            self._now += 1
            self.total += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self.seconds)
            return load_packed(served, runs)
        finally:
            with self._lock:
                self._now -= 1


class Bench:
    """A pack in this process, and a router's link to it whose answers are kept."""

    def __init__(self, folder: Path, spec: PackSpec, loads: Loads) -> None:
        loop = asyncio.get_running_loop()
        self.folder = folder
        self.loads = loads
        self.events: dict[int, EntryEvent] = {}
        self.replica = Replica(ReplicaSpec("shared-0", "unix:/x", (), pack=spec), [], loop)
        self.pack = self.replica.pack = Pack(spec, self.replica, loads, self.hear, loop)
        self.link = RouterLink(self.replica)
        self._id = 0

    def hear(self, event: ReplicaEvent) -> None:
        assert event.entry is not None
        self.events[event.entry.slot] = event.entry

    def add(self, number: int, artifact: models.Artifact, measured: int = 0, memory_mb: int | None = None) -> Path:
        path = artifact.save(self.folder)
        options = EngineOptions()
        served = ServedVersion(
            number, f"t/m{number}", 1, "onnx", str(path), artifact.digest, SIGNATURE, options, len(artifact.content)
        )
        item = CatalogItem(served, 1, memory_mb, measured)
        self.pack.change(msgspec.json.encode(CatalogChange((item,))))
        return path

    def slot(self, number: int) -> PackedSlot:
        slot = self.replica.slots[number]
        assert isinstance(slot, PackedSlot)
        return slot

    async def until(self, true: Callable[[], bool], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.002)

    async def tried(self, count: int) -> None:
        """Until so many versions have been loaded for the first time."""
        await self.until(lambda: sum(e.state in ("ready", "failed") for e in self.events.values()) == count)

    def ask(self, number: int, timeout_s: float = 10.0) -> int:
        self._id += 1
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}).encode()
        now = time.monotonic()
        slot = self.slot(number)
        slot.waiting.append((self._id, now + timeout_s, 0, b"", memoryview(body), now, self.link, 0))
        self.replica.active.add(slot)
        self.replica.schedule()
        return self._id

    async def answers(self, count: int) -> list[tuple[int, bytes]]:
        """(Status, body), by the order of arrival."""
        await self.until(lambda: len(self.parsed()) >= count)
        return self.parsed()

    def parsed(self) -> list[tuple[int, bytes]]:
        data, at, found = b"".join(self.link.out), 0, []
        while at < len(data):
            length, _, _, _, status, _, _, _ = frames.HEADER.unpack_from(data, at)
            at += frames.SIZE
            found.append((status, data[at : at + length]))
            at += length
        return found


Test = Callable[[Bench], Awaitable[None]]
Run = Callable[..., None]


@pytest.fixture
def on(tmp_path: Path) -> Run:
    """Run a test on a pack of the given limits."""
    preload("onnx")

    def run(test: Test, *, memory_mb: int = 4096, model_mb: int = 64, waiting: int = 256, seconds: float = 0.0) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, PackSpec(0, memory_mb, model_mb, 2, waiting), Loads(seconds))
            try:
                await test(bench)
            finally:
                bench.pack.close()

        asyncio.run(main())

    return run


def room_for(mb: int) -> int:
    """A limit that leaves so many MiB for models, beside what this process takes already."""
    base = rss_bytes() >> 20
    return int((base + mb) / 0.92) + 1


def test_a_version_is_loaded_when_it_is_asked_for_and_once_for_all_who_wait(on: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.add(0, models.echo_onnx(), measured=100_000)
        assert bench.events[0].state == "ready" and not bench.slot(0).resident and bench.loads.total == 0
        for _ in range(20):
            bench.ask(0)
        found = await bench.answers(20)
        assert {status for status, _ in found} == {200}
        assert bench.loads.total == 1 and bench.slot(0).resident
        report = bench.pack.report()
        assert (report.misses, report.hits, report.resident) == (20, 0, (0,))
        bench.ask(0)
        await bench.answers(21)
        assert bench.loads.total == 1 and bench.pack.report().hits == 1

    on(test, seconds=0.05)


def test_a_burst_of_cold_versions_is_bounded(on: Run) -> None:
    async def test(bench: Bench) -> None:
        for k in range(30):
            bench.add(k, models.echo_onnx(float(k)), measured=100_000)
        for k in range(30):
            bench.ask(k)
        found = await bench.answers(30)
        refused = [body for status, body in found if status == 503]
        assert len(refused) == 30 - 10 and b"wait to be loaded already" in refused[0]
        assert sum(status == 200 for status, _ in found) == 10
        assert bench.loads.most == 2
        assert bench.pack.report().refused == 20

    on(test, seconds=0.03, waiting=10)


def test_a_deadline_that_passes_in_the_queue_is_told_and_costs_no_load(on: Run) -> None:
    async def test(bench: Bench) -> None:
        for k in range(6):
            bench.add(k, models.echo_onnx(float(k)), measured=100_000)
        for k in range(4):
            bench.ask(k)
        await bench.until(lambda: bench.loads.total == 2)  # the versions of one tick come in any order
        for k in (4, 5):
            bench.ask(k, timeout_s=0.05)
        found = await bench.answers(6)
        assert [status for status, _ in found].count(504) == 2
        assert bench.loads.total == 4

    on(test, seconds=0.2)


def test_what_does_not_load_is_refused_and_its_neighbours_are_not(on: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.add(0, models.echo_onnx())
        bench.add(1, models.echo_onnx(1.0).truncated(0.5))
        await bench.tried(2)
        assert bench.events[1].state == "failed" and "does not load" in bench.events[1].detail
        bench.ask(0)
        assert [status for status, _ in await bench.answers(1)] == [200]

    on(test)


def test_an_artifact_that_is_damaged_later_fails_its_version_alone(on: Run) -> None:
    async def test(bench: Bench) -> None:
        path = bench.add(0, models.echo_onnx(), measured=100_000)
        bench.add(1, models.echo_onnx(1.0), measured=100_000)
        path.write_bytes(b"no model at all")
        bench.ask(0)
        bench.ask(1)
        found = await bench.answers(2)
        (broken,) = [body.decode() for status, body in found if status == 503]
        assert "m0@1 cannot be loaded: the artifact is damaged" in broken
        assert "its last load failed" in bench.events[0].detail and bench.events[0].state == "ready"
        bench.ask(0)  # not tried again so soon
        await bench.answers(3)
        assert bench.loads.total == 2
        path.write_bytes(models.echo_onnx().content)
        bench.slot(0).failed_until = 0.0
        bench.ask(0)
        assert (await bench.answers(4))[-1][0] == 200
        assert bench.events[0].detail == ""

    on(test)


def test_a_model_that_takes_more_than_it_may_is_refused_with_the_reason(on: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.add(0, weights(0, 16), memory_mb=8)
        await bench.tried(1)
        assert bench.events[0].state == "failed" and "may take 8.0 MiB" in bench.events[0].detail

    on(test)


def weights(seed: int, mb: int) -> models.Artifact:
    """x [-1,1] -> y [-1,1] with so many MiB of weights."""
    big = np.random.default_rng(seed).standard_normal((1, mb << 18), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceMean", ["h"], ["y"], axes=[1], keepdims=1),
    ]
    value = [helper.make_tensor_value_info(name, 1, ["n", 1]) for name in ("x", "y")]
    content = models.onnx_graph(nodes, value[:1], value[1:], [numpy_helper.from_array(big, "w")])
    return models.Artifact("onnx", "m.onnx", content)


def test_memory_stays_below_the_limit_and_comes_back(on: Run) -> None:
    limit = room_for(10 * LARGE_MB)

    async def test(bench: Bench) -> None:
        for k in range(12):
            bench.add(k, weights(k, LARGE_MB))
            await bench.tried(k + 1)
        assert {e.state for e in bench.events.values()} == {"ready"}
        highest = 0
        for turn in range(60):
            bench.ask((turn * 5) % 12)
            await bench.answers(turn + 1)
            highest = max(highest, rss_bytes())
        assert {status for status, _ in bench.parsed()} == {200}
        assert sum(bench.slot(k).evictions for k in range(12)) > 20
        assert highest <= limit << 20
        assert bench.pack.residency.used_bytes <= limit << 20

    on(test, memory_mb=limit)


def test_a_thousand_evictions_do_not_grow_the_process(on: Run) -> None:
    async def test(bench: Bench) -> None:
        for k in range(2):
            bench.add(k, models.echo_onnx(float(k)))
        await bench.tried(2)
        resident = []
        for turn in range(1000):
            number = turn % 2
            if bench.slot(number).resident:
                bench.pack._unload(bench.slot(number), evicted=True).close()
            bench.ask(number)
            await bench.answers(1)
            bench.link.out.clear()
            if turn in (200, 999):
                bench.pack._memory.trim()
                resident.append(rss_bytes())
        assert resident[1] - resident[0] < 4 << 20

    on(test)


def test_a_version_that_leaves_answers_what_it_has_and_then_nothing(on: Run) -> None:
    async def test(bench: Bench) -> None:
        for k in range(2):
            bench.add(k, models.echo_onnx(float(k)), measured=100_000)
        bench.ask(0)
        bench.ask(1)
        await bench.answers(2)
        bench.ask(0)
        bench.pack.change(msgspec.json.encode(CatalogChange((), (0,))))
        assert (await bench.answers(3))[-1][0] == 200
        await bench.until(lambda: not bench.slot(0).resident)
        bench.ask(0)
        status, body = (await bench.answers(4))[-1]
        assert status == 503 and b"has left" in body
        bench.ask(1)
        assert (await bench.answers(5))[-1][0] == 200
        assert list(bench.pack.report().resident) == [1]

    on(test)
