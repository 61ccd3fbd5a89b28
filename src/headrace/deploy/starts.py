"""How long replicas take to start: counted once each, by engine and stage, and of each version from command to ready.

The state is the fleet's: a control plane that comes up finds in the statuses what the replicas that run have taken, so
nothing is stored. A version of which none runs is judged by its engine until one does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import ceil

from headrace.core.report import Histogram, bin_of
from headrace.core.specs import ReplicaStatus

KEPT = 100
"""Last starts of a version, or of an engine, by which its quantile is told."""
TOTAL = "total"
Version = tuple[str, int]


class StartTimes:
    """Counts the starts that it is shown."""

    def __init__(self) -> None:
        self.stages: dict[tuple[str, str, str], Histogram] = {}
        """(engine, what the process was before, stage) -> durations; stage `TOTAL` from command to ready."""
        self._seen: set[str] = set()
        self._of_version: dict[Version, deque[float]] = {}
        self._of_engine: dict[str, deque[float]] = {}

    def observe(self, statuses: Iterable[ReplicaStatus]) -> None:
        """Count what has become ready since the last look; what is gone from the fleet is forgotten by its id."""
        statuses = tuple(statuses)
        self._seen &= {status.spec.id for status in statuses}
        for status in statuses:
            if TOTAL in status.timings_s and status.spec.id not in self._seen:
                self._seen.add(status.spec.id)
                self._count(status)

    def _count(self, status: ReplicaStatus) -> None:
        engine = "+".join(sorted({served.engine for served in status.spec.versions}))
        for stage, seconds in status.timings_s.items():
            histogram = self.stages.setdefault((engine, status.origin, stage), Histogram({}, 0.0))
            histogram.merge(Histogram({bin_of(seconds): 1}, seconds))
        total = status.timings_s[TOTAL]
        self._of_engine.setdefault(engine, deque(maxlen=KEPT)).append(total)
        for served in status.spec.versions:
            self._of_version.setdefault((served.model, served.version), deque(maxlen=KEPT)).append(total)

    def p95_s(self, version: Version, engine: str = "") -> float | None:
        """The 95th percentile of a version's last starts; of its engine's where it has none; None without either."""
        found = self._of_version.get(version) or self._of_engine.get(engine)
        return p95(found) if found else None


def p95(durations_s: Iterable[float]) -> float:
    """The 95th percentile by nearest rank, of at least one."""
    ordered = sorted(durations_s)
    return ordered[ceil(0.95 * len(ordered)) - 1]
