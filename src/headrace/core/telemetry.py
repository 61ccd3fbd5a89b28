"""Folding of measured durations into report histograms, once per report instead of once per request."""

from __future__ import annotations

import numpy as np

from headrace.core.report import BINS, LOG_STEP, Histogram


def fold(durations_s: list[float]) -> Histogram:
    """The histogram of a list of durations in seconds."""
    if not durations_s:
        return Histogram({}, 0.0)
    values = np.fromiter(durations_s, np.float64, len(durations_s))
    bins = np.log(np.maximum(values * 1e6, 1.0)) / LOG_STEP
    counts = np.bincount(np.minimum(bins.astype(np.int64), BINS - 1))
    used = np.flatnonzero(counts)
    return Histogram(dict(zip(used.tolist(), counts[used].tolist(), strict=True)), float(values.sum()))


FOLD_MAX = 2048
"""Durations that wait to be folded; more are folded before the report, so that a report is no pause for the requests
beside it, and a control plane that is away costs no memory."""


class Durations:
    """Durations since the last report. `add` is a list's `append`: one per request."""

    __slots__ = ("_folded", "_waiting", "add")

    def __init__(self) -> None:
        self._waiting: list[float] = []
        self._folded = Histogram({}, 0.0)
        self.add = self._waiting.append

    def trim(self) -> None:
        """Fold what waits where it is much; to be called now and then."""
        if len(self._waiting) > FOLD_MAX:
            self._fold()

    def take(self) -> Histogram:
        """All since the last call."""
        self._fold()
        taken, self._folded = self._folded, Histogram({}, 0.0)
        return taken

    @property
    def empty(self) -> bool:
        """None since the last `take`."""
        return not (self._waiting or self._folded.bins)

    def _fold(self) -> None:
        self._folded.merge(fold(self._waiting))
        self._waiting.clear()


def rss_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, this one without `pid`; 0 where it, or /proc, is not to be had."""
    try:
        with open(f"/proc/{pid or 'self'}/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0
