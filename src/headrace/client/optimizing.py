"""Optimisations as the client asks for them: files sent, a job queued, its end waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from headrace.client import calls
from headrace.client.flows import send_sample
from headrace.client.steps import Flow, Memory, Pause, request
from headrace.core import resources as r
from headrace.core.errors import Unavailable
from headrace.core.optimization import TOLERANCE, CandidateName, Metric, OptimizationCreate

LOOK_S = 0.2
ENDED = ("done", "failed", "cancelled")
Watch = Callable[[r.Job], None]


def optimize(
    memory: Memory,
    reference: str,
    data: str | Path,
    *,
    label: str | None = None,
    calibration: str | Path | None = None,
    tolerance: float = TOLERANCE,
    metric: Metric | None = None,
    output: str | None = None,
    pick: CandidateName | None = None,
    reason: str | None = None,
    wait: bool = True,
    wait_s: float = 3600.0,
    watch: Watch | None = None,
) -> Flow[r.Job]:
    """Make a faster or smaller version of an ONNX version, behind an accuracy gate, and wait for it.

    Args:
        reference: ``churn@3``.
        data: held-out rows: a Parquet, CSV or NPZ file.
        label: its column of labels; without one, the gate is by agreement with the source.
        calibration: other rows, for static INT8.
        tolerance: how much worse the metric may be.
        metric: accuracy, auc, r2, rmse or agreement.
        output: which output is judged.
        pick: graph, dynamic-int8 or static-int8; the best that passes when left out.
        reason: for the audit.
        wait: whether to wait for the job's end.
        wait_s: how long at most.
        watch: is shown the job at every look.

    Returns:
        The job: `done` with `made`, the new version's number, or `failed` with `error`; both with `report`.

    Raises:
        InvalidInput, Unprocessable, NotFound: it was not queued.
        Unavailable: it has not ended in time.
    """
    rows = yield from send_sample(memory, data, label, "data")
    ranges = None if calibration is None else (yield from send_sample(memory, calibration, label, "calibration"))
    body = OptimizationCreate(rows, ranges, tolerance, metric, output, pick, reason)
    job = (yield from request(memory, calls.optimize(reference, body))).result
    return (yield from wait_for(memory, job.id, wait_s, watch)) if wait else job


def wait_for(memory: Memory, id_: str, wait_s: float = 3600.0, watch: Watch | None = None) -> Flow[r.Job]:
    """Wait for a job's end. Raises Unavailable where it does not come in time."""
    end = time.monotonic() + wait_s
    while True:
        job = yield from request(memory, calls.show_job(id_))
        if watch is not None:
            watch(job)
        if job.state in ENDED:
            return job
        if time.monotonic() > end:
            raise Unavailable(f"{id_} is still {job.state} after {wait_s:g} s", hint=f"headrace jobs show {id_}")
        yield Pause(LOOK_S)
