"""How waiting requests become runs of the engine. Pure.

Work-conserving: whatever waits when the engine is free is the next batch; nobody is held back to make a batch larger.
`BatchPolicy` is where another law may stand; it decides by the queue and the clock it is given, and by nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
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


def plan_runs(
    jobs: Sequence[Job], parts: Sequence[Part], rows_max: int, batchable: bool
) -> list[tuple[list[Job], list[Part]]]:
    """Split decoded requests into runs of at most `rows_max` rows whose shapes agree; a larger request runs alone."""
    if not batchable:
        return [([job], [part]) for job, part in zip(jobs, parts, strict=True)]
    runs: list[tuple[list[Job], list[Part]]] = []
    open_runs: dict[object, tuple[list[Job], list[Part], int]] = {}
    for job, part in zip(jobs, parts, strict=True):
        current = open_runs.get(part.shape_key)
        if current is None or current[2] + part.rows > rows_max:
            current = ([], [], 0)
            runs.append((current[0], current[1]))
        current[0].append(job)
        current[1].append(part)
        open_runs[part.shape_key] = (current[0], current[1], current[2] + part.rows)
    return runs
