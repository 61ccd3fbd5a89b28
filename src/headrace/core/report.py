"""Reports: the compact, mergeable telemetry that routers and replicas hand to the control plane each second.

Latencies are counted in 2 % log bins (`bin_of`): two reports merge by adding counts, and any quantile read from them
is off by at most 2 %.
"""

from __future__ import annotations

import math

import msgspec

BINS = 1000
"""Bin k counts durations in [1.02^k, 1.02^(k+1)) microseconds; 1,000 bins reach 400 s."""
LOG_STEP = math.log(1.02)


def bin_of(seconds: float) -> int:
    """The bin of a duration; below 1 us is bin 0, above the last bin is the last."""
    us = seconds * 1e6
    return 0 if us < 1.0 else min(int(math.log(us) / LOG_STEP), BINS - 1)


def upper_s(index: int) -> float:
    """The upper edge of a bin, in seconds."""
    return math.exp((index + 1) * LOG_STEP) * 1e-6


class Histogram(msgspec.Struct, array_like=True):
    """Sparse counts over the bins, and the exact sum in seconds."""

    bins: dict[int, int] = {}
    sum_s: float = 0.0

    def merge(self, other: Histogram) -> None:
        """Add `other`'s counts to this one's."""
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count
        self.sum_s += other.sum_s

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.bins.values())

    def quantile_s(self, q: float) -> float:
        """The q-quantile's bin's upper edge, in seconds; nan when empty."""
        total, seen = self.count, 0
        for index in sorted(self.bins):
            seen += self.bins[index]
            if seen >= q * total:
                return upper_s(index)
        return math.nan


class RequestCell(msgspec.Struct, array_like=True):
    """One model version and tenant as a router saw them since the last report. `version` 0: refused before the
    decision. `model` is ``tenant/name``, or "" where the request named none that exists; `tenant` -1: no tenant."""

    model: str
    version: int
    tenant: int
    latency: Histogram
    errors: dict[int, int]
    """HTTP status -> count."""


class Condemned(msgspec.Struct, array_like=True, frozen=True):
    """An input that has killed replicas of a version: refused until then (Unix seconds)."""

    model: str
    """``tenant/name``."""
    version: int
    digest: bytes
    until: float


class RouterReport(msgspec.Struct, array_like=True):
    """What one router process did since its last report."""

    router: str
    epoch: int
    cells: tuple[RequestCell, ...]
    in_flight: int
    connections: int
    retries: int
    ejections: int
    rss_bytes: int
    condemned: tuple[Condemned, ...] = ()
    """Inputs that this router has found out, until its snapshot has them."""


class StepReport(msgspec.Struct, array_like=True):
    """What one step of a pipeline did in one replica since the last report."""

    step: str
    rows: int
    failures: int
    """Runs that raised; the rows at fault run again, alone."""
    durations: Histogram
    """Of each run of the step: as many as the pipeline's, or more where a batch is more than the step takes."""


class SlotReport(msgspec.Struct, array_like=True):
    """What one version did in one replica since the last report."""

    model: str
    version: int
    requests: int
    rows: int
    batches: int
    errors: int
    queued: int
    """Requests waiting at the time of the report."""
    batch_rows: dict[int, int]
    """Rows in the batch (rounded up to a power of two) -> batches."""
    queue: Histogram
    engine: Histogram
    """Duration of each run of the engine."""
    steps: tuple[StepReport, ...] = ()
    """Of a pipeline."""
    loads: int = 0
    """In a pack: how often it was loaded because somebody asked for it."""
    evictions: int = 0
    load_s: float = 0.0
    """Seconds that these loads took together."""


class PackReport(msgspec.Struct, array_like=True):
    """What a pack did since its last report, and what it holds."""

    number: int
    resident: tuple[int, ...]
    """Slots of the versions that are in memory."""
    resident_bytes: int
    """What they take together."""
    limit_bytes: int
    """Of the process's resident memory."""
    hits: int
    """Requests whose version was in memory."""
    misses: int
    """Requests that had to wait for it."""
    refused: int
    """Requests that were refused, for too many versions were waiting."""
    waiting: int
    """Versions that wait to be loaded."""
    loads: Histogram
    """Duration of each load."""


class ReplicaReport(msgspec.Struct, array_like=True):
    """What one replica process did since its last report."""

    replica: str
    slots: tuple[SlotReport, ...]
    rss_bytes: int
    pack: PackReport | None = None


class Hello(msgspec.Struct, array_like=True):
    """First frame of a router or replica to the control plane: who it is, and the epoch it serves (routers)."""

    kind: str
    """``router`` or ``replica``."""
    id: str
    pid: int
    epoch: int = 0


class Command(msgspec.Struct, array_like=True):
    """What a router asks the control plane on behalf of a client of the data plane (`repository/models/m/load`)."""

    verb: str
    """``load`` or ``unload``."""
    model: str
    tenant: int
    role: str


class CommandReply(msgspec.Struct, array_like=True):
    """Outcome of a `Command`: HTTP status and, unless 200, what is wrong."""

    status: int
    message: str = ""
