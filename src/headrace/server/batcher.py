"""How waiting requests become runs of the engine. Pure.

Work-conserving: whatever waits when the engine is free is the next batch; nobody is held back to make a batch larger.
`BatchPolicy` is where another law may stand; it decides by the queue and the clock it is given, and by nothing else.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeVar

from headrace.server.codec import Part

Job = TypeVar("Job")


class BatchPolicy(Protocol):
    """Which of the waiting requests run next."""

    def take(self, waiting: deque[Job], now: float) -> list[Job]:
        """Remove from `waiting` and return what shall run now, oldest first; at least one if any waits."""


class WorkConserving:
    """All that waits, up to a limit of requests.

    Args:
        limit: most requests taken at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def take(self, waiting: deque[Job], now: float) -> list[Job]:
        """See `BatchPolicy.take`."""
        if len(waiting) <= self.limit:
            taken = list(waiting)
            waiting.clear()
            return taken
        return [waiting.popleft() for _ in range(self.limit)]


Run = tuple[list[Job], list[Part], int]
"""Requests, decoded, and their rows in all."""


def plan_runs(jobs: list[Job], parts: list[Part], rows_max: int, batchable: bool) -> list[Run[Job]]:
    """Split decoded requests into runs of at most `rows_max` rows whose shapes agree; a larger request runs alone."""
    if not batchable:
        return [([job], [part], part.rows) for job, part in zip(jobs, parts, strict=True)]
    rows = sum([part.rows for part in parts])
    if rows <= rows_max and len({part.shape_key for part in parts}) == 1:
        return [(jobs, parts, rows)]
    runs: list[Run[Job]] = []
    open_runs: dict[object, int] = {}  # shape -> index of its run
    for job, part in zip(jobs, parts, strict=True):
        index = open_runs.get(part.shape_key)
        if index is None or runs[index][2] + part.rows > rows_max:
            open_runs[part.shape_key] = len(runs)
            runs.append(([job], [part], part.rows))
        else:
            run = runs[index]
            run[0].append(job)
            run[1].append(part)
            runs[index] = (run[0], run[1], run[2] + part.rows)
    return runs
