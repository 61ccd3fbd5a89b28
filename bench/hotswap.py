"""Swaps, rollbacks, crashes and scaling under a steady open-loop load: what does a caller notice?

    python -m bench.hotswap [--quick] [--rate 400]

Two versions with two replicas each stand behind the load, which records the `model_version` of every answer. In turn:
traffic swaps to the other version (every fifth time to one that is deployed just now, and the oldest is undeployed),
rollbacks, kill -9 of a serving replica, scaling up and down, kill -9 of the control plane.

failed: requests without a 200, whose connection broke, or whose answer was another's, or came later than 2 s after
they were sent. not_effective_in_time: changes that the API did not call effective; without them the next figure would
say less than it seems to. wrong_version_after_ack: answers by the old version to requests that were *sent* after
the API had answered `effective`. rollback_effective_ms: from issuing a rollback to the last answer by the old version.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench import models
from bench.harness import Bar, parser, percentile, report, say, scratch
from bench.openloop import OpenLoop, Shot
from bench.product import Product, product

MODEL = "trees"
PAUSE_S = 0.25
"""Between two events: answers must come by the new version for a while, to be counted."""
FRESH_EVERY = 5
BARS = (
    Bar("failed", at_most=0.0),
    Bar("wrong_version_after_ack", at_most=0.0),
    Bar("rollback_effective_ms_p99", at_most=1000.0),
    Bar("not_effective_in_time", at_most=0.0),
)


@dataclass(frozen=True)
class Change:
    """A traffic change; times of the loop's clock."""

    kind: str
    issued: float
    acknowledged: float
    effective: bool
    effective_ms: float
    version: int
    """Which serves from here on."""


class Drill:
    """Does to the platform what operators and accidents do to it."""

    def __init__(self, running: Product, folder: Path) -> None:
        self.running = running
        self.folder = folder
        self.clock = asyncio.get_running_loop().time
        self.changes: list[Change] = []
        self.live = 1
        self.other = 2
        self.done: Counter[str] = Counter()

    def path(self) -> str:
        return f"/api/v1/models/{MODEL}"

    def change(self, kind: str, method: str, path: str, body: object) -> None:
        """Change the traffic to the other version and note when what was said."""
        issued = self.clock()
        change = self.running.call(method, path, body)["change"]
        self.live, self.other = self.other, self.live
        effective_ms = change["effective_ms"] or 0.0
        self.changes.append(Change(kind, issued, self.clock(), change["effective"], effective_ms, self.live))

    def push(self) -> int:
        """Another version, ready with two replicas."""
        number = max(self.live, self.other) + 1 if self.done["version"] >= 2 else self.done["version"] + 1
        artifact = models.trees(self.folder / f"trees-{number}.onnx", str(number))
        version = self.running.push(MODEL, artifact, engine="onnx", options={"outputs": ["probabilities"]})
        self.running.deploy(MODEL, version, replicas=2)
        self.done["version"] += 1
        return version

    def swap(self) -> None:
        if self.done["swap"] % FRESH_EVERY == FRESH_EVERY - 1:
            oldest = self.other
            self.other = self.push()
            self.running.call("DELETE", f"/api/v1/deployments/{MODEL}@{oldest}")
        self.change("swap", "PUT", f"{self.path()}/traffic", {"weights": {str(self.other): 100.0}})

    def rollback(self) -> None:
        self.change("rollback", "POST", f"{self.path()}/rollback", {"reason": "drill"})

    def kill_replica(self) -> None:
        deployment = self.running.deployment(MODEL, self.live)
        pid = next(i["pid"] for i in deployment["instances"] if i["state"] == "ready")
        os.kill(pid, signal.SIGKILL)
        self.running.wait_gone(MODEL, self.live, pid)
        self.running.wait_ready(MODEL, self.live, 2)

    def scale(self) -> None:
        for replicas in (3, 2):
            self.running.call("PATCH", f"/api/v1/deployments/{MODEL}@{self.live}", {"replicas": replicas})
            self.running.wait_ready(MODEL, self.live, replicas)

    def kill_control_plane(self) -> None:
        self.running.kill_control_plane()

    async def run(self, plan: dict[str, int]) -> None:
        """All of the plan, mixed evenly, one after another."""
        order = list(plan)
        steps = sorted(
            ((position + 0.5) / count, order.index(name)) for name, count in plan.items() for position in range(count)
        )
        for _, place in steps:
            name = order[place]
            await asyncio.to_thread(getattr(self, name))
            self.done[name] += 1
            say(f"  {name} {self.done[name]} of {plan[name]}")
            await asyncio.sleep(PAUSE_S)


def after_ack(shots: list[Shot], changes: list[Change]) -> tuple[int, int]:
    """(Answers to requests that were sent after a change was acknowledged as effective, those of them by a version that
    was no longer in force)."""
    checked = wrong = 0
    for number, change in enumerate(changes):
        following = changes[number + 1] if number + 1 < len(changes) else None
        until = following.issued if following else float("inf")
        # Sent just before the next change, a request may already be answered by that one.
        allowed = {change.version, following.version if following else change.version}
        for shot in shots:
            if change.effective and change.acknowledged < shot.sent < until and shot.status == 200:
                checked += 1
                early = shot.answered < until
                wrong += shot.version != change.version if early else shot.version not in allowed
    return checked, wrong


def last_old_answer_ms(shots: list[Shot], changes: list[Change], number: int) -> float:
    """From issuing change `number` to the last answer by another version before the next change."""
    change = changes[number]
    until = changes[number + 1].issued if number + 1 < len(changes) else float("inf")
    old = [
        s.answered
        for s in shots
        if s.status == 200 and change.issued < s.answered and s.sent < until and s.version != change.version
    ]
    return max(0.0, (max(old) - change.issued) * 1e3) if old else 0.0


async def drill(running: Product, folder: Path, plan: dict[str, int], rate: float) -> tuple[Drill, OpenLoop]:
    """Start, load, disturb."""
    it = Drill(running, folder)
    await asyncio.to_thread(it.push)
    keys = await asyncio.to_thread(running.tenant_keys, 8, MODEL)
    await asyncio.to_thread(it.push)
    requests = models.product_requests(f"/v2/models/{MODEL}/infer", keys)
    load = OpenLoop(running.http_port, requests, rate)
    task = asyncio.create_task(load.run())
    await asyncio.sleep(1.0)
    try:
        await it.run(plan)
        await asyncio.sleep(1.0)
    finally:
        load.stopping = True
        await task
    return it, load


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rate", type=float, default=400.0, help="requests a second")
    a = arguments.parse_args()
    plan = {"swap": 20, "rollback": 20, "kill_replica": 5, "scale": 5, "kill_control_plane": 2}
    if a.quick:
        plan = {"swap": 6, "rollback": 6, "kill_replica": 1, "scale": 1, "kill_control_plane": 1}
    with scratch() as folder, product(folder / "up") as running:
        it, load = asyncio.run(drill(running, folder, plan, a.rate))
    shots, changes = load.shots, it.changes
    failures = Counter(f"{s.status} {s.why[:120]}" for s in shots if s.failed)
    for why, count in failures.most_common(5):
        say(f"  failed {count} times: {why}")
    rollbacks = [last_old_answer_ms(shots, changes, k) for k, c in enumerate(changes) if c.kind == "rollback"]
    latencies = [(s.answered - s.due) * 1e3 for s in shots if s.status == 200] or [float("nan")]
    checked, wrong = after_ack(shots, changes)
    figures = {
        "failed": float(sum(failures.values())),
        "wrong_version_after_ack": float(wrong),
        "answers_after_ack": float(checked),
        "rollback_effective_ms_p99": percentile(rollbacks, 0.99),
        "rollback_effective_ms_p50": percentile(rollbacks, 0.5),
        "requests": float(len(shots)),
        "latency_p50_ms": percentile(latencies, 0.5),
        "latency_p99_ms": percentile(latencies, 0.99),
        "latency_max_ms": max(latencies),
        "late_sends_p99_ms": percentile([(s.sent - s.due) * 1e3 for s in shots], 0.99),
        "acknowledged_ms_p99": percentile([(c.acknowledged - c.issued) * 1e3 for c in changes], 0.99),
        "not_effective_in_time": float(sum(not c.effective for c in changes)),
    }
    context = {"rate_per_s": a.rate, "events": dict(it.done), "replicas_per_version": 2}
    report("hotswap", figures, context, BARS)


if __name__ == "__main__":
    main()
