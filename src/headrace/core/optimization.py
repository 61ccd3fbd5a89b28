"""What an optimisation is asked to do, and what it reports: values of the API and of the process that does it."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.core.reference import Sample

Metric = Literal["accuracy", "auc", "r2", "rmse", "agreement"]
"""`agreement` needs no labels: how often the candidate answers as its source does."""
CandidateName = Literal["graph", "dynamic-int8", "static-int8"]
Verdict = Literal["passed", "failed", "undecided", "not tried"]
TOLERANCE = 0.01


class OptimizationCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /api/v1/models/{model}/versions/{version}/optimize"""

    data: Sample
    """Held-out rows; with a `label` the gate is by a metric, without by agreement with the source."""
    calibration: Sample | None = None
    """Rows, not of `data`, to find the ranges of activations by: static INT8 is tried only with them."""
    tolerance: float = TOLERANCE
    """How much worse the metric may be: of accuracy, AUC, R2 and agreement in absolute terms, of RMSE by its ratio."""
    metric: Metric | None = None
    """Left out: `agreement` without labels, else `accuracy` of a classifier and `r2` of anything else."""
    output: str | None = None
    """The output that is judged; left out: the first that the metric can judge."""
    pick: CandidateName | None = None
    """Which candidate to register if it passes; left out: the fastest, of equally fast ones the smallest."""
    reason: str | None = None


class Comparison(msgspec.Struct, frozen=True):
    """A candidate against its source on the same rows."""

    metric: Metric
    rows: int
    before: float
    after: float
    loss: float
    """By how much it is worse; negative where it is better."""
    low: float
    high: float
    """95 % confidence interval of the loss over rows like these, paired."""
    tolerance: float


class CandidateReport(msgspec.Struct, frozen=True):
    """What became of a candidate."""

    name: CandidateName
    verdict: Verdict
    reason: str
    size_bytes: int | None = None
    run_ms: float | None = None
    """Median of runs of `batch` rows on one thread."""
    speedup: float | None = None
    """The source's time by its own, run by turns."""
    comparison: Comparison | None = None
    max_abs: float | None = None
    """Largest difference of a floating output."""
    max_relative: float | None = None
    """The same by max(1, |the source's|)."""


class OptimizationReport(msgspec.Struct, frozen=True):
    """What was tried, and what of it is registered."""

    rows: int
    batch: int
    source_size_bytes: int
    source_run_ms: float
    candidates: tuple[CandidateReport, ...]
    picked: CandidateName | None
    reason: str
    """Why that, or why none."""
