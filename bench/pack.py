"""A thousand models in two processes: what does each cost in memory, and what does the long tail cost the hot ones?

    python -m bench.pack [--quick] [--models 1000] [--cap 128]

Small networks of distinct weights are deployed as shared. Requests come by an open loop, over the models by Zipf's law;
every answer is checked against what that model's weights give. The cap on memory is chosen so that about half of the
models fit: the rest is loaded when it is asked for, and others are evicted.

`hot` are the requests to the 20 models of the lowest ranks. `cold` is measured by itself, while the hot load goes on:
models that the platform says are in no process's memory are asked for once each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from bench.harness import Bar, fail, parser, percentile, report, rss_mb, say, scratch, wait_until
from bench.product import Product, product
from bench.replica_memory import pss_mb

FEATURES, HIDDEN = 32, 128
HOT = 20
BARS = (
    Bar("hot_p99_ms", at_most=5.0),
    Bar("cold_p99_ms", at_most=100.0),
    Bar("failed", at_most=0.0),
    Bar("memory_over_cap_mb", at_most=0.0),
)


@dataclass(frozen=True)
class Network:
    """One hidden layer; y [-1, 1] of x [-1, FEATURES]."""

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    last: npt.NDArray[np.float32]

    @classmethod
    def of(cls, number: int) -> Network:
        """The number is the seed: no two are alike."""
        draw = np.random.default_rng(number).standard_normal
        return cls(*(draw(shape, np.float32) for shape in ((FEATURES, HIDDEN), (HIDDEN,), (HIDDEN, 1))))

    def save(self, path: Path) -> Path:
        """As ONNX."""
        graph = helper.make_graph(
            [
                helper.make_node("Gemm", ["x", "weights", "bias"], ["h"]),
                helper.make_node("Relu", ["h"], ["r"]),
                helper.make_node("MatMul", ["r", "last"], ["y"]),
            ],
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
            [numpy_helper.from_array(getattr(self, name), name) for name in ("weights", "bias", "last")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        return path

    def answer(self, row: npt.NDArray[np.float32]) -> float:
        """What the platform shall say."""
        hidden = np.maximum(row @ self.weights + self.bias, 0)
        return float((hidden @ self.last)[0])


class Pool:
    """Keep-alive connections to the platform, and what came of the requests on them."""

    def __init__(self, port: int, key: str, networks: list[Network]) -> None:
        self.failures: list[str] = []
        self._port = port
        self._key = key
        self._networks = networks
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._random = random.Random(7)

    async def ask(self, number: int, due: float) -> float:
        """Ask a model about a random row; seconds from when it was due. What goes wrong is noted."""
        row = np.array([round(self._random.gauss(0, 1), 3) for _ in range(FEATURES)], np.float32)
        given = {"name": "x", "datatype": "FP32", "shape": [1, FEATURES], "data": [round(float(v), 3) for v in row]}
        body = json.dumps({"inputs": [given]}).encode()
        try:
            status, reply = await asyncio.wait_for(self._send(number, body), 20.0)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.failures.append(f"model-{number}: {error!r}")
            return time.perf_counter() - due
        taken = time.perf_counter() - due
        if status != 200:
            self.failures.append(f"model-{number}: {status} {reply[:200]!r}")
        elif not np.isclose(json.loads(reply)["outputs"][0]["data"][0], self._networks[number].answer(row), 1e-3, 1e-3):
            self.failures.append(f"model-{number}: the answer of another model: {reply[:200]!r}")
        return taken

    async def _send(self, number: int, body: bytes) -> tuple[int, bytes]:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        head = f"POST /v2/models/model-{number}/infer HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {self._key}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        found = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in found.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        reply = await reader.readexactly(int(length.partition(b":")[2]))
        self._idle.append((reader, writer))
        return int(found[9:12]), reply

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()


@dataclass
class Load:
    """An open loop over the models by Zipf's law."""

    pool: Pool
    models: int
    rate_per_s: float
    taken: list[tuple[int, float]] = field(default_factory=list)
    """(Model, seconds) of each request."""

    async def run(self, seconds: float) -> None:
        """Send, and wait for the answers."""
        draw = random.Random(11)
        weights = list(accumulate(1 / (rank + 1) for rank in range(self.models)))
        numbers = draw.choices(range(self.models), cum_weights=weights, k=int(seconds * self.rate_per_s))
        start, tasks = time.perf_counter(), set()

        async def one(number: int, due: float) -> None:
            self.taken.append((number, await self.pool.ask(number, due)))

        for k, number in enumerate(numbers):
            due = start + k / self.rate_per_s
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            tasks.add(asyncio.create_task(one(number, due)))
        await asyncio.gather(*tasks)

    def p_ms(self, quantile: float, hot: bool) -> float:
        """A quantile of the latency, of hot models or of all."""
        return percentile([s * 1e3 for number, s in self.taken if number < HOT or not hot], quantile)


class Memory:
    """Watches the packs' resident memory."""

    def __init__(self, pids: list[int]) -> None:
        self.most_mb = 0.0
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            with contextlib.suppress(OSError):
                self.most_mb = max([self.most_mb, *map(rss_mb, self._pids)])

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def packs(running: Product) -> list[dict[str, Any]]:
    """The shared processes as the platform shows them."""
    return list(running.call("GET", "/api/v1/status")["packs"])


def deploy(running: Product, networks: list[Network], folder: Path) -> float:
    """Register and deploy all as shared; seconds until all are ready in every pack."""
    started = time.monotonic()

    def one(number: int) -> None:
        name = f"model-{number}"
        version = running.push(name, networks[number].save(folder / f"{name}.onnx"), engine="onnx")
        running.call("POST", "/api/v1/deployments", {"model": name, "version": version, "mode": "shared"})

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(one, range(len(networks))):
            pass

    def ready() -> bool:
        found = running.call("GET", "/api/v1/status")["deployments"]
        if broken := [d["detail"] for d in found if d["state"] == "failed"]:
            fail(f"{len(broken)} models failed: {broken[0]}")
        return sum(d["ready"] == 2 for d in found) == len(networks)

    wait_until(ready, "all models to be ready in both packs", 300.0, 0.25)
    return time.monotonic() - started


def dedicated(running: Product, networks: list[Network], folder: Path, count: int = 4) -> tuple[float, float]:
    """Resident and proportional memory of a process of its own, mean of a few, in MB."""
    pids = []
    for k in range(count):
        name = f"alone-{k}"
        version = running.push(name, networks[k].save(folder / f"{name}.onnx"), engine="onnx")
        running.deploy(name, version)
        pids.append(running.deployment(name, version)["instances"][0]["pid"])
    return sum(map(rss_mb, pids)) / count, sum(map(pss_mb, pids)) / count


def cold_models(running: Product) -> Iterator[int]:
    """Models that are in no pack's memory, least wanted first."""
    found = running.call("GET", "/api/v1/status")["deployments"]
    numbers = [int(d["model"].partition("-")[2]) for d in found if d["resident"] is False]
    return iter(sorted(numbers, reverse=True))


async def drive(
    running: Product, pool: Pool, models: int, rate: float, seconds: float
) -> tuple[Load, Load, list[float]]:
    """The Zipf load; then hot models alone, with cold ones in between: the loads, and seconds of each cold answer."""
    mixed, hot = Load(pool, models, rate), Load(pool, HOT, rate)
    await mixed.run(seconds / 2)  # until it is known who is hot: a model that was never asked for is like any other
    mixed.taken.clear()
    await mixed.run(seconds)
    await asyncio.sleep(2.5)  # for the packs to report who is in memory
    cold = []
    numbers = [*cold_models(running)][: int(seconds * 10)]
    beside = asyncio.create_task(hot.run(seconds))
    for number in numbers:
        cold.append(await pool.ask(number, time.perf_counter()))
        await asyncio.sleep(max(seconds / max(len(numbers), 1) - cold[-1], 0))
    await beside
    pool.close()
    return mixed, hot, cold


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", type=int)
    arguments.add_argument("--cap", type=int, default=128, help="MiB of each pack")
    a = arguments.parse_args()
    count = a.models or (500 if a.quick else 1000)
    seconds, rate = (8.0, 150.0) if a.quick else (40.0, 200.0)
    networks = [Network.of(k) for k in range(count)]
    settings = {"shared_memory_mb": a.cap, "shared_replicas": 2}
    with scratch() as folder, product(folder / "up", settings=settings) as running:
        deploy(running, networks[:1], folder)
        pids = [pack["pid"] for pack in packs(running)]
        empty_mb = sum(map(rss_mb, pids)) / len(pids)
        say(f"deploying {count} models")
        with Memory(pids) as memory:
            took = deploy(running, networks, folder)
            say(f"  {took:.1f} s")
            key = str(running.call("POST", "/api/v1/keys", {"tenant": "default", "role": "viewer"})["result"]["text"])
            before = packs(running)
            pool = Pool(running.http_port, key, networks)
            mixed, beside, cold = asyncio.run(drive(running, pool, count, rate, seconds))
            after = packs(running)
            resident_mb = [(rss_mb(p["pid"]) - empty_mb) / max(p["resident"] - 1, 1) for p in after]
        if [pack["pid"] for pack in after] != pids:
            fail("a pack ended meanwhile")

        def grown(name: str) -> int:
            return sum(p[name] for p in after) - sum(p[name] for p in before)

        alone_mb, alone_pss_mb = dedicated(running, networks, folder)
        cap_mb = a.cap * (1 << 20) / 1e6
        figures = {
            "mb_per_resident_model": max(resident_mb),
            "hot_p99_ms": mixed.p_ms(0.99, True),
            "hot_p50_ms": mixed.p_ms(0.5, True),
            "cold_p99_ms": percentile([s * 1e3 for s in cold], 0.99) if cold else None,
            "cold_p50_ms": percentile([s * 1e3 for s in cold], 0.5) if cold else None,
            "hot_beside_cold_p99_ms": beside.p_ms(0.99, True),
            "all_p99_ms": mixed.p_ms(0.99, False),
            "memory_mb_max": memory.most_mb,
            "cap_mb": cap_mb,
            "memory_over_cap_mb": max(memory.most_mb - cap_mb, 0.0),
            "failed": len(pool.failures),
            "hit_percent": 100 * grown("hits") / max(grown("hits") + grown("misses"), 1),
            "loads": grown("loads"),
            "evictions": grown("evictions"),
            "shared_total_mb": sum(map(rss_mb, pids)),
            "dedicated_total_mb": alone_mb * count,
            "dedicated_total_pss_mb": alone_pss_mb * count,
            "deploy_ms_per_model": took / count * 1e3,
        }
        context = {
            "models": count,
            "resident": [p["resident"] for p in after],
            "rate_per_s": rate,
            "seconds": seconds,
            "requests": len(mixed.taken) + len(beside.taken) + len(cold),
            "cold_requests": len(cold),
            "empty_pack_mb": round(empty_mb, 1),
            "dedicated_of": "the mean of 4 processes, times the models: extrapolated",
            "failures": pool.failures[:5],
        }
    report("pack", figures, context, BARS)


if __name__ == "__main__":
    main()
