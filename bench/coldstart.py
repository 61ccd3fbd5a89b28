"""How long a replica takes from the command to start it to the first answer.

    python -m bench.coldstart [--quick]

A 200 MB ONNX model, by a node's agent alone: `zygote_first_inference_ms` is from the start command in the node to the
first answered inference of a replica that is forked from a zygote and maps the serving form, `cold_process_ms` the
same of a new process that loads the artifact, as every replica did before; `pool_first_inference_ms` takes a process
that stands ready instead of forking. All in turn in one run. What each stage takes, and the memory of several replicas
of the model, are in the context: the share of each process in the pages that it has (PSS), which add up.

`upload_to_live_s` (100 MB, pushed over HTTP, deployed, first prediction) and `multi_gb_ready_s` (2 GB that are on the
node, from the command to deploy to the first prediction) are those of `bench.upload`, measured on a platform that runs.
With --quick the large model has a quarter of the size, and its figure another name.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Bar, fail, median, parser, report, say, scratch
from bench.upload import SIDE, made
from headrace.core import frames, meta
from headrace.core.config import Settings
from headrace.core.forms import RECORD, folder_of
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions, ReplicaSpec, ServedVersion
from headrace.core.verified import digest_of
from headrace.deploy.node import Node
from headrace.deploy.record import ReplicaRecord
from headrace.deploy.wire import NodeCommand

MATRICES = 12
TOGETHER = 4
"""Replicas whose memory is added up."""
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, SIDE], "datatype": "FP32", "data": [0.5] * SIDE}]}).encode()
REQUEST = frames.frame(frames.REQUEST, 1, deadline_ms=60_000, meta=meta.encode(meta.Meta(0, -1, b"")), body=BODY)


class Agent:
    """A node's agent that was given one model."""

    def __init__(self, node: Node, folder: Path, artifact: Path) -> None:
        self.node = node
        self._folder = folder
        self._count = 0
        ends = (TensorSpec("x", "FP32", (-1, SIDE)),), (TensorSpec("y", "FP32", (-1, SIDE)),)
        self.served = ServedVersion(
            0, "default/m", 1, "onnx", str(artifact), digest_of(artifact), Signature(*ends), EngineOptions()
        )

    async def until(self, true: Any, what: str, seconds: float = 120.0) -> None:
        """Wait for something that the agent does."""
        end = asyncio.get_running_loop().time() + seconds
        while not true():
            if asyncio.get_running_loop().time() > end:
                fail(f"waited {seconds:g} s in vain for {what}")
            await asyncio.sleep(0.0005)

    async def start(self) -> tuple[ReplicaRecord, float]:
        """A replica, and the ms from the command to the answer of its first request."""
        loop = asyncio.get_running_loop()
        self._count += 1
        name = f"r{self._count}"
        path = f"{self._folder}/{name}"
        spec = ReplicaSpec(name, f"unix:{path}", (self.served,), drain_s=1.0)
        began = loop.time()
        self.node.command(NodeCommand("start", name, spec))
        record = self.node.replicas[name]
        await self.until(lambda: record.state in ("ready", "failed", "crashed"), name)
        if record.state != "ready":
            fail(f"{name}: {record.detail}")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(REQUEST)
        header = frames.HEADER.unpack(await reader.readexactly(frames.SIZE))
        await reader.readexactly(header[0])
        taken = (loop.time() - began) * 1e3
        if header[2] != frames.REPLY:
            fail(f"{name} refused: {header}")
        writer.close()
        return record, taken

    async def stop(self, record: ReplicaRecord) -> None:
        """End a replica."""
        self.node.command(NodeCommand("stop", record.spec.id))
        await self.until(lambda: record.state == "stopped", "a replica to stop")
        self.node.command(NodeCommand("forget", record.spec.id))

    async def memory(self) -> tuple[float, float]:
        """MB that several replicas take together: their shares in what they have (PSS), and what each has (RSS)."""
        records = [(await self.start())[0] for _ in range(TOGETHER)]
        await asyncio.sleep(1.0)  # prepacking in the background ends
        kinds = [rollup(record.status().pid) for record in records]
        for record in records:
            await self.stop(record)
        return sum(pss for pss, _ in kinds) / TOGETHER, sum(rss for _, rss in kinds) / TOGETHER


def rollup(pid: int) -> tuple[float, float]:
    """PSS and RSS of a process, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {line.split()[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines[1:]}
    return found["Pss:"], found["Rss:"]


@asynccontextmanager
async def agent(folder: Path, artifact: Path, **settings: Any) -> AsyncIterator[Agent]:
    """An agent without control plane and routers."""
    (folder / "logs").mkdir(parents=True)
    given = Settings(data=str(folder), drain_s=1.0, **settings)
    node = Node(given, folder, folder, {"http": -1, "grpc": -1, "control": -1})
    try:
        yield Agent(node, folder, artifact)
    finally:
        node.stopping.set()
        await node.shut_down(asyncio.Event())


async def measure(folder: Path, artifact: Path, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Cold processes, zygotes and the pool, in turn."""
    taken: dict[str, list[float]] = {"cold": [], "zygote": [], "pool": []}
    stages: dict[str, dict[str, float]] = {}
    async with (
        agent(folder / "cold", artifact, zygotes="off", forms_max_bytes=0) as cold,
        agent(folder / "zygote", artifact) as forked,
        agent(folder / "pool", artifact, idle_processes=2) as pool,
    ):
        for warm in (forked, pool):
            await warm.stop((await warm.start())[0])
            form = folder_of(Path(warm.node.forms.folder), warm.served.digest)
            await warm.until((form / RECORD).exists, "the serving form")
            await warm.until((form / "weights.bin.verified").exists, "its stamp")
            await warm.until(lambda warm=warm: warm.node.forms.idle, "its process to end")
        for _ in range(rounds):
            for name, one in (("cold", cold), ("zygote", forked), ("pool", pool)):
                record, ms = await one.start()
                taken[name].append(ms)
                stages[name] = {stage: round(s * 1e3, 1) for stage, s in record.timings_s.items()}
                await one.stop(record)
                await asyncio.sleep(0.2)
            say("  " + ", ".join(f"{name} {times[-1]:.0f} ms" for name, times in taken.items()))
        memory = {name: await one.memory() for name, one in (("cold", cold), ("zygote", forked))}
        zygote = forked.node.zygotes.statuses()[0]
        record_text = (folder_of(Path(forked.node.forms.folder), forked.served.digest) / RECORD).read_bytes()
    figures = {
        "zygote_first_inference_ms": median(taken["zygote"]),
        "pool_first_inference_ms": median(taken["pool"]),
        "cold_process_ms": median(taken["cold"]),
    }
    context = {
        "each_ms": {name: [round(ms, 1) for ms in times] for name, times in taken.items()},
        "stages_ms": stages,
        "replica_pss_mb": {name: round(pss, 1) for name, (pss, _) in memory.items()},
        "replica_rss_mb": {name: round(rss, 1) for name, (_, rss) in memory.items()},
        "replicas_together": TOGETHER,
        "zygote_rss_mb": round(zygote.rss_bytes / 1e6, 1),
        "form": json.loads(record_text),
    }
    return figures, context


def upload(quick: bool) -> dict[str, float]:
    """The figures of `bench.upload`."""
    command = [sys.executable, "-m", "bench.upload", *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        fail("bench.upload could not measure")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])["figures"]
    return found


def main() -> None:
    a = parser(__doc__).parse_args()
    with scratch() as folder:
        artifact = made(folder, MATRICES, 0)
        figures, context = asyncio.run(measure(folder, artifact, 3 if a.quick else 15))
        context["model_bytes"] = artifact.stat().st_size
    uploaded = upload(a.quick)
    ready = "ready_s" if a.quick else "multi_gb_ready_s"
    figures |= {name: uploaded[name] for name in ("upload_to_live_s", ready)}
    bars = (
        Bar("zygote_first_inference_ms", at_most=50.0),
        Bar("upload_to_live_s", at_most=10.0),
        Bar("multi_gb_ready_s", at_most=10.0),
    )
    report("coldstart", figures, context, bars[:2] if a.quick else bars)


if __name__ == "__main__":
    main()
