"""The accuracy gate: whether an optimised model is as good as its source. Pure.

A test of non-inferiority. The loss (how much worse the candidate is) has a 95 % confidence interval from paired
comparison: the same rows through both. It passes when the whole interval is within the tolerance, and fails when the
loss itself is beyond it. In between nothing can be said: the held-out set is too small, which is neither a pass nor a
fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

from headrace.core.optimization import CandidateName, CandidateReport, Comparison, Verdict

ROWS_MIN = 30
"""Fewer rows say nothing, whatever they say."""
Z = 1.959964
"""Of a two-sided interval of 95 %."""
GAIN = 1.05
"""By how much a candidate must be faster or smaller to be worth a version; within it two are equally fast."""


def paired_accuracy(better: int, worse: int, rows: int) -> tuple[float, float, float]:
    """Loss of accuracy and its interval, from the rows that only one of the two gets right: the adjusted Wald interval
    for paired proportions (Bonett and Price 2012), which does not collapse where no row differs."""
    p, q = (worse + 1) / (rows + 2), (better + 1) / (rows + 2)
    half = Z * sqrt((p + q - (p - q) ** 2) / (rows + 2))
    loss = (worse - better) / rows
    return loss, min(loss, p - q - half), max(loss, p - q + half)


def disagreement(different: int, rows: int) -> tuple[float, float, float]:
    """Share of rows that are answered otherwise, and its interval (Wilson 1927)."""
    p, square = different / rows, Z * Z
    centre = (p + square / (2 * rows)) / (1 + square / rows)
    half = Z * sqrt(p * (1 - p) / rows + square / (4 * rows * rows)) / (1 + square / rows)
    return p, max(0.0, centre - half), min(1.0, centre + half)


def judge(found: Comparison) -> tuple[Verdict, str]:
    """The verdict on a comparison, and why."""
    said = f"{found.metric} {found.before:.4f} -> {found.after:.4f} on {found.rows} rows"
    interval = f"loss {found.loss:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}"
    if found.loss > found.tolerance:
        return "failed", f"{said}: {interval}, tolerated {found.tolerance:g}"
    if found.high <= found.tolerance:
        return "passed", f"{said}: {interval}, within {found.tolerance:g}"
    wanted = rows_needed(found)
    more = (
        f"at most about {wanted} such rows would decide"
        if wanted is not None
        else "no number of such rows would decide"
    )
    return "undecided", f"{said}: {interval}, tolerated {found.tolerance:g}; {more}"


def rows_needed(found: Comparison) -> int | None:
    """Rows with which the interval would lie within the tolerance, the loss being as it is: its width shrinks with
    their square root. None where the loss is the tolerance itself."""
    room = found.tolerance - found.loss
    if room <= 0:
        return None
    wanted = found.rows * ((found.high - found.loss) / room) ** 2
    return ceil(wanted) if wanted < 1e12 else None


def choose(
    source_size_bytes: int, candidates: Sequence[CandidateReport], pick: CandidateName | None
) -> tuple[CandidateName | None, str]:
    """Which candidate to register, if any, and why."""
    if pick is not None:
        found = next((one for one in candidates if one.name == pick), None)
        if found is None or found.verdict != "passed":
            return None, f"{pick}: {found.reason if found is not None else 'not tried'}"
        return pick, f"{pick}, as asked: {_gains(found, source_size_bytes)}"
    passed = [one for one in candidates if one.verdict == "passed"]
    if not passed:
        undecided = [one for one in candidates if one.verdict == "undecided"]
        told = undecided or [one for one in candidates if one.verdict == "failed"] or candidates
        what = "the held-out set is too small to decide" if undecided else "no candidate passes"
        return None, f"{what}: {'; '.join(f'{one.name}: {one.reason}' for one in told)}"
    worth = [
        one
        for one in passed
        if (one.speedup or 0) >= GAIN or (one.size_bytes or source_size_bytes) * GAIN <= source_size_bytes
    ]
    if not worth:
        gains = "; ".join(f"{one.name}: {_gains(one, source_size_bytes)}" for one in passed)
        return None, f"nothing gained: {gains}"
    fastest = max(one.speedup or 0 for one in worth)
    equal = [one for one in worth if (one.speedup or 0) * GAIN >= fastest]
    best = min(equal, key=lambda one: (one.size_bytes or source_size_bytes, one.name))
    return best.name, f"{best.name}: {_gains(best, source_size_bytes)}"


def _gains(one: CandidateReport, source_size_bytes: int) -> str:
    share = (one.size_bytes or source_size_bytes) / source_size_bytes
    return f"{one.speedup or 0:.2f} times as fast, {100 * share:.0f} % of the size"
