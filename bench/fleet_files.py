"""How long a fleet file of 1,000 models takes to plan.

    python -m bench.fleet_files [--quick] [--models 1000]

`plan_s`: a platform with so many models, each with a version, a deployment and settings, is compared with the file of
its own export: read, five lists, no change. `plan_drift_s`: the same with one thing in twenty changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx

from bench import models
from bench.harness import Bar, median, parser, report, say, scratch
from bench.many_models import register
from bench.product import product
from headrace.client.client import Client

BARS = (Bar("plan_s", at_most=2.0),)


def timed(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the median round."""
    taken = []
    for _ in range(rounds):
        started = time.monotonic()
        work()
        taken.append(time.monotonic() - started)
    return median(taken)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", type=int, default=1000)
    a = arguments.parse_args()
    rounds = 3 if a.quick else 9
    requests: list[httpx.Request] = []
    with scratch() as folder, product(folder / "platform") as running:
        say(f"registering {a.models} models")
        register(running, a.models, models.row_sum(folder / "sum.onnx"))
        key = running.client.headers["authorization"].removeprefix("Bearer ")
        access = (f"http://127.0.0.1:{running.http_port}", key, str(running.client.base_url))
        with Client(*access) as client:
            path = Path(folder) / "fleet.toml"
            export_s = timed(lambda: path.write_text(client.fleet.export()), rounds)
            assert client.fleet.plan(path).steps == []
            plan_s = timed(lambda: client.fleet.plan(path), rounds)
            client._http["control"].event_hooks["request"].append(requests.append)
            client.fleet.plan(path)
            count = len(requests)
            text = path.read_text()
            path.write_text(
                "".join(
                    line.replace("timeout_s = 30.0", "timeout_s = 31.0") if place % 20 == 0 else line
                    for place, line in enumerate(text.splitlines(keepends=True))
                )
            )
            drift_s = timed(lambda: client.fleet.plan(path), rounds)
            steps = len(client.fleet.plan(path).steps)
    figures = {"plan_s": plan_s, "plan_drift_s": drift_s, "export_s": export_s}
    context = {
        "models": a.models,
        "file_kb": len(text) >> 10,
        "requests": count,
        "steps": steps,
        "rounds": rounds,
    }
    report("fleet_files", figures, context, BARS)


if __name__ == "__main__":
    main()
