"""Does a router care how many models there are?

    python -m bench.many_models [--quick] [--models 1000]

Two platforms stand side by side: one with one model, one with 1,000 in its routing snapshot, of which the same one is
under load. Rates are measured in turn, and the traffic of the big one is changed again and again: how long until every
router serves by the new snapshot?

All 1,000 are deployed, but only the one has replicas: 1,000 processes are more than a machine has room for.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import models
from bench.dataplane import MODEL, deploy_trees
from bench.harness import Bar, Load, median, need_wrk, parser, percentile, report, say, scratch, wrk
from bench.product import Product, product

BARS = (Bar("ratio_rps_1000_to_1", at_least=0.95), Bar("snapshot_to_routers_ms_p99", at_most=100.0))


def register(running: Product, count: int, artifact: Path) -> float:
    """Register and deploy so many models of one version each, with no replicas; seconds that it took."""
    started = time.monotonic()

    def one(number: int) -> None:
        version = running.push(f"model-{number:04d}", artifact, engine="onnx")
        running.deploy(f"model-{number:04d}", version, replicas=0, ready=False)

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(one, range(count)):
            pass
    return time.monotonic() - started


def change_traffic(running: Product, times: int) -> tuple[list[float], list[float]]:
    """Change the split so many times; milliseconds from commit to the routers, and of the whole call."""
    effective, wall = [], []
    for number in range(times):
        started = time.monotonic()
        change = running.split(MODEL, {1: 100.0 - number % 50, 2: float(number % 50)})
        wall.append((time.monotonic() - started) * 1e3)
        effective.append(change["effective_ms"] if change["effective"] else float("inf"))
    return effective, wall


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", type=int, default=1000)
    a = arguments.parse_args()
    need_wrk()
    rounds, seconds, changes = (4, 2.0, 40) if a.quick else (9, 4.0, 200)
    with scratch() as folder, product(folder / "many") as many, product(folder / "one") as one:
        builds = [models.trees(folder / f"trees-{build}.onnx", build) for build in ("1", "2")]
        say(f"registering {a.models} models")
        took = register(many, a.models - 1, models.row_sum(folder / "sum.onnx"))
        say(f"  {took:.1f} s")
        script_many, script_one = deploy_trees(many, builds), deploy_trees(one, builds)
        loads: list[tuple[Load, Load]] = []
        for number in range(rounds):
            pair = [(many.http_port, script_many), (one.http_port, script_one)]
            order = pair if number % 2 == 0 else pair[::-1]
            got = {port: wrk(port, script, connections=64, seconds=seconds) for port, script in order}
            loads.append((got[many.http_port], got[one.http_port]))
            say(f"  {loads[-1][0].rps:.0f} requests/s with {a.models}, {loads[-1][1].rps:.0f} with one")
        effective, wall = change_traffic(many, changes)
        figures = {
            "ratio_rps_1000_to_1": median([big.rps / small.rps for big, small in loads]),
            "snapshot_to_routers_ms_p99": percentile(effective, 0.99),
            "snapshot_to_routers_ms_p50": percentile(effective, 0.5),
            "traffic_change_wall_ms_p99": percentile(wall, 0.99),
            "rps_1000": median([big.rps for big, _ in loads]),
            "rps_1": median([small.rps for _, small in loads]),
            "router_rss_mb": many.router_rss_mb(),
            "register_and_deploy_ms_per_model": took / max(1, a.models - 1) * 1e3,
        }
        context = {"models": a.models, "with_replicas": 1, "rounds": rounds, "seconds": seconds, "changes": changes}
        report("many_models", figures, context, BARS)


if __name__ == "__main__":
    main()
