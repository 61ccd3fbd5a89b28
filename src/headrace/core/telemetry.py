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


def rss_bytes() -> int:
    """Resident memory of this process; 0 where /proc is not to be had."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0
