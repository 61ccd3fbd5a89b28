"""When a version gets replicas of its own, and when it goes back among the others: by its load. Pure.

Two thresholds, and a time for which the load must have stood above the one or below the other: so a version near a
threshold does not go to and fro, and a short burst costs no process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headrace.core.resources import Placement
from headrace.core.specs import Packing

SMOOTHING_S = 3.0
"""Time constant of the rate."""
FAULTS_MAX = 2
"""Ends of a shared process that are one version's fault; then it is served apart."""


@dataclass(slots=True)
class Load:
    """A version's load, and since when it has been what it is. Seconds are of the monotonic clock."""

    rate_per_s: float = 0.0
    at: float | None = None
    high_since: float | None = None
    low_since: float | None = None

    def observe(self, requests: int, now: float, limits: Packing) -> None:
        """So many requests have come since the last look."""
        if self.at is not None and now > self.at:
            weight = 1 - math.exp((self.at - now) / SMOOTHING_S)
            self.rate_per_s += weight * (requests / (now - self.at) - self.rate_per_s)
        self.at = now
        high, low = self.rate_per_s >= limits.promote_per_s, self.rate_per_s <= limits.demote_per_s
        self.high_since = (self.high_since if self.high_since is not None else now) if high else None
        self.low_since = (self.low_since if self.low_since is not None else now) if low else None


@dataclass(frozen=True, slots=True)
class Move:
    """Where a version shall be served, and why."""

    placed: Placement
    why: str


def judge(placed: Placement, load: Load, now: float, limits: Packing) -> Move | None:
    """Whether an `auto` deployment is to be moved."""
    if placed == "shared" and load.high_since is not None and now - load.high_since >= limits.promote_after_s:
        why = f"{load.rate_per_s:.1f} requests/s, {limits.promote_per_s:g} or more for {now - load.high_since:.0f} s"
        return Move("dedicated", why)
    if placed == "dedicated" and load.low_since is not None and now - load.low_since >= limits.demote_after_s:
        why = f"{load.rate_per_s:.1f} requests/s, {limits.demote_per_s:g} or fewer for {now - load.low_since:.0f} s"
        return Move("shared", why)
    return None


def isolate(placed: Placement, faults: int) -> Move | None:
    """Whether a version that is to blame for so many ends of shared processes is to be served apart."""
    if placed == "shared" and faults >= FAULTS_MAX:
        return Move("isolated", f"it has ended shared processes {faults} times")
    return None
