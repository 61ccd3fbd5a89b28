"""Does a router care how many models there are?

    python -m bench.many_models [--quick] [--models 1000]

Two platforms stand side by side: one with one model, one with 1,000 in its routing snapshot, of which the same one is
under load. Rates are measured in turn, and the routing of the big one is changed again and again, in every way there
is: how long until every router has said that it serves by the new snapshot?

All 1,000 are deployed, but only the one has replicas: 1,000 processes are more than a machine has room for.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import models
from bench.dataplane import MODEL, deploy_trees
from bench.harness import Bar, Load, median, need_wrk, parser, percentile, report, say, scratch, wrk
from bench.product import Product, product

BARS = (Bar("ratio_rps_1000_to_1", at_least=0.95), Bar("snapshot_to_routers_ms_p99", at_most=100.0))


def register(running: Product, count: int, artifact: Path) -> float:
    """Register and deploy so many models of one version each, with no replicas; seconds that it took."""
    started = time.monotonic()

    digest = running.put(artifact)

    def one(number: int) -> None:
        version = running.register(f"model-{number:04d}", digest, artifact.name, engine="onnx")
        running.deploy(f"model-{number:04d}", version, replicas=0, ready=False)

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(one, range(count)):
            pass
    return time.monotonic() - started


class Changes:
    """Changes of every kind that routers must follow, one at a time. A change is answered when every router has
    acknowledged that it serves by it (`effective`); one that was not counts as endless.

    `effective_ms` is from commit to the last acknowledgement, `wall_ms` the whole call as its client sees it.
    """

    def __init__(self, running: Product, folder: Path) -> None:
        self.running = running
        self.folder = folder
        self.effective_ms: dict[str, list[float]] = {}
        self.wall_ms: dict[str, list[float]] = {}

    def do(self, kind: str, method: str, path: str, body: object = None) -> Any:
        """One change; its result."""
        started = time.monotonic()
        reply = self.running.call(method, f"/api/v1{path}", body)
        self.wall_ms.setdefault(kind, []).append((time.monotonic() - started) * 1e3)
        change = reply["change"]
        self.effective_ms.setdefault(kind, []).append(change["effective_ms"] if change["effective"] else float("inf"))
        return reply["result"]

    def once(self, number: int) -> None:
        """One of each kind."""
        percent, other = 1 + number % 50, f"model-{number:04d}"
        self.do("traffic set", "PUT", f"/models/{MODEL}/traffic", {"weights": {"1": 100 - percent, "2": percent}})
        self.do("rollback", "POST", f"/models/{MODEL}/rollback", {})
        self.do("pin", "PUT", f"/models/{MODEL}/traffic/overrides/default", {"version": 1 + number % 2})
        self.do("unpin", "DELETE", f"/models/{MODEL}/traffic/overrides/default")
        self.do("quota", "PATCH", "/tenants/default", {"max_in_flight": 1_000_000 - number})
        made = self.do("key created", "POST", "/keys", {"role": "viewer"})
        self.do("key revoked", "DELETE", f"/keys/{made['key']['id']}")
        self.do("settings", "PATCH", f"/models/{MODEL}", {"timeout_s": 30.0 + number})
        self.do("undeploy", "DELETE", f"/deployments/{other}@1")
        self.do("deploy", "POST", "/deployments", {"model": f"{other}@1", "replicas": 0})

    def push(self, number: int) -> None:
        """Another version, examined and registered; routers need not know of it."""
        artifact = models.row_sum(self.folder / "pushed.onnx", f"push {number}")
        started = time.monotonic()
        self.running.push("model-0000", artifact, engine="onnx")
        self.wall_ms.setdefault("models push", []).append((time.monotonic() - started) * 1e3)

    def figures(self) -> dict[str, float]:
        """The median and the 99th percentile of all, and of each kind."""
        together = [one for many in self.effective_ms.values() for one in many]
        found = {f"snapshot_to_routers_ms_p{q}": percentile(together, q / 100) for q in (99, 50)}
        for kind, many in self.effective_ms.items():
            found[f"{kind.replace(' ', '_')}_to_routers_ms_p99"] = percentile(many, 0.99)
        for kind, many in self.wall_ms.items():
            for q in (50, 99):
                found[f"{kind.replace(' ', '_')}_wall_ms_p{q}"] = percentile(many, q / 100)
        return found


def replace_replica(running: Product) -> float:
    """Kill the replica under load; seconds until its successor serves: routers have been told twice."""
    started = time.monotonic()
    (pid,) = {i["pid"] for i in running.deployment(MODEL, 2)["instances"] if i["state"] == "ready"}
    os.kill(pid, signal.SIGKILL)
    running.wait_gone(MODEL, 2, pid)
    running.wait_ready(MODEL, 2, 1)
    return time.monotonic() - started


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", type=int, default=1000)
    a = arguments.parse_args()
    need_wrk()
    rounds, seconds, changes = (4, 2.0, 20) if a.quick else (9, 4.0, 100)
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
        say(f"changing the routing, {changes} times of each kind")
        done = Changes(many, folder)
        for number in range(changes):
            done.once(number)
        for number in range(changes // 4):
            done.push(number)
        figures = {
            "ratio_rps_1000_to_1": median([big.rps / small.rps for big, small in loads]),
            **done.figures(),
            "replica_replaced_s": replace_replica(many),
            "rps_1000": median([big.rps for big, _ in loads]),
            "rps_1": median([small.rps for _, small in loads]),
            "router_rss_mb": many.router_rss_mb(),
            "register_and_deploy_ms_per_model": took / max(1, a.models - 1) * 1e3,
        }
        context = {"models": a.models, "with_replicas": 1, "rounds": rounds, "seconds": seconds, "changes": changes}
        report("many_models", figures, context, BARS)


if __name__ == "__main__":
    main()
