"""Swaps, rollbacks, crashes, scaling and a killed control plane under a steady load: nobody's request is lost, and no
answer comes by a version that the API has called replaced. The bench's drill, in small."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from bench.harness import scratch
from bench.hotswap import after_ack, drill
from bench.product import product

PLAN = {"swap": 4, "rollback": 4, "kill_replica": 1, "scale": 1, "kill_control_plane": 1}


@pytest.mark.xdist_group("machine")
def test_a_drill_under_load_costs_nobody_a_request() -> None:
    with scratch() as folder, product(Path(folder) / "up") as running:
        done, load = asyncio.run(drill(running, folder, PLAN, 60.0))
    assert {step: done.done[step] for step in PLAN} == PLAN
    assert [(shot.status, shot.why) for shot in load.shots if shot.failed] == []
    assert [change.kind for change in done.changes if not change.effective] == []
    checked, wrong = after_ack(load.shots, done.changes)
    assert checked > 100 and wrong == 0
