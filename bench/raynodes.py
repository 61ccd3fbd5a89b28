"""A fleet on a real Ray cluster of three nodes on loopback addresses, under open-loop load: one node is killed, then
Ray's head is.

`failed` counts requests to an idempotent model that were not answered right while a node died and its replicas were
started elsewhere, `failed_head_down` those of the time without Ray's head. `restored_s` runs from the kill until as
many replicas as are wanted are ready on the nodes that are left. ``python -m bench.raynodes``
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec
from tests.ray_cluster import Cluster

from bench import models
from bench.harness import Bar, fail, parser, percentile, report, say, scratch
from bench.openloop import OpenLoop, Shot
from bench.product import Product, product
from headrace.deploy.wire import NodeState

MODEL = "churn"
REPLICAS = 4
BARS = (Bar("failed", at_most=0), Bar("failed_head_down", at_most=0))
"""`restored_s` has none: Ray's own start of a worker is most of it."""
RESTORE_MAX_S = 120.0


def hosts(running: Product) -> list[str]:
    """Nodes of the replicas that are ready."""
    state = msgspec.json.decode((running.folder / "ray.json").read_bytes(), type=NodeState)
    ready = {i["id"] for d in running.call("GET", "/api/v1/deployments")["items"] for i in ready_of(d)}
    return [s.address.split(":")[1] for s in state.replicas if s.spec.id in ready]


def ready_of(deployment: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    return [one for one in deployment["instances"] if one["state"] == "ready"]


async def until(true: Callable[[], bool], what: str) -> float:
    """Seconds until it is true."""
    start = time.monotonic()
    while not await asyncio.to_thread(true):
        if time.monotonic() - start > RESTORE_MAX_S:
            fail(f"waited in vain for {what}")
        await asyncio.sleep(0.1)
    return time.monotonic() - start


async def under_load(running: Product, key: str, rate: float, work: Awaitable[float]) -> tuple[float, list[Shot]]:
    """What the work took, and every request from a second before it to a second after."""
    load = OpenLoop(running.http_port, models.product_requests(f"/v2/models/{MODEL}/infer", [key]), rate)
    task = asyncio.create_task(load.run())
    await asyncio.sleep(1.0)
    try:
        taken = await work
        await asyncio.sleep(1.0)
    finally:
        load.stopping = True
        await task
    return taken, load.shots


async def drill(running: Product, cluster: Cluster, key: str, rate: float, down_s: float) -> dict[str, float]:
    """Kill a node, then the head."""

    async def lose_node() -> float:
        lost = cluster.host(2)
        await asyncio.to_thread(cluster.kill, 2)
        # Those that went with it may still be told of: as many as are wanted, elsewhere.
        return await until(lambda: sum(host != lost for host in hosts(running)) >= REPLICAS, "replicas elsewhere")

    async def lose_head() -> float:
        await asyncio.to_thread(cluster.kill, 0)
        held = await until(lambda: bool(running.call("GET", "/api/v1/status")["fleet"]["holding"]), "the hold")
        await asyncio.sleep(max(down_s - held, 0.0))
        return held

    restored_s, during = await under_load(running, key, rate, lose_node())
    say(f"  restored after {restored_s:.1f} s")
    held_s, headless = await under_load(running, key, rate, lose_head())
    for shots in (during, headless):
        for why, count in Counter(f"{s.status} {s.why[:120]}" for s in shots if s.failed).most_common(5):
            say(f"  failed {count} times: {why}")
    latencies = [(s.answered - s.due) * 1e3 for s in during if not s.failed] or [float("nan")]
    return {
        "failed": float(sum(s.failed for s in during)),
        "requests": float(len(during)),
        "restored_s": restored_s,
        "latency_p50_ms": percentile(latencies, 0.5),
        "latency_p99_ms": percentile(latencies, 0.99),
        "latency_max_ms": max(latencies),
        "failed_head_down": float(sum(s.failed for s in headless)),
        "requests_head_down": float(len(headless)),
        "held_after_s": held_s,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rate", type=float, default=200.0, help="requests a second")
    a = arguments.parse_args()
    if importlib.util.find_spec("ray") is None:
        say("SKIPPED: raynodes needs Ray: pip install 'headrace[ray]'")
        report("raynodes", dict.fromkeys(("failed", "restored_s", "failed_head_down")), {"skipped": "no ray"}, ())
        return
    # Past 60 s Ray ends the raylets and us too: then our agent has started again, and the replicas are on their own.
    down_s = 15.0 if a.quick else 90.0
    with scratch() as folder:
        cluster = Cluster(folder)
        try:
            cluster.start(0, cpus=0)
            for number in (1, 2):
                cluster.start(number)
            os.environ |= {
                "HEADRACE_FLEET": "ray",
                "HEADRACE_RAY_ADDRESS": cluster.address,
                "HEADRACE_RAY_FOLDER": str(folder / "nodes"),
                "HEADRACE_FLEET_PORT": "0",
                "HEADRACE_UNLINKED_S": "20",
            }
            with product(folder / "up") as running:
                artifact = models.trees(folder / "trees.onnx")
                version = running.push(MODEL, artifact, engine="onnx", options={"outputs": ["probabilities"]})
                running.deploy(MODEL, version, REPLICAS)
                (key,) = running.tenant_keys(1, MODEL)
                figures = asyncio.run(drill(running, cluster, key, a.rate, down_s))
        finally:
            cluster.stop()
    context = {"rate_per_s": a.rate, "replicas": REPLICAS, "nodes": 3, "head_down_s": down_s}
    report("raynodes", figures, context, BARS)


if __name__ == "__main__":
    main()
