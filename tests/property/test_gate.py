"""The accuracy gate: intervals against SciPy and by simulation, verdicts by tables, the choice by Hypothesis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import r2_score, roc_auc_score, root_mean_squared_error

from headrace.core.optimization import CandidateName, CandidateReport, Comparison, Verdict
from headrace.registry.gate import choose, disagreement, judge, paired_accuracy, rows_needed
from headrace.server.comparing import SCORES

COUNTS = st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 3000)).filter(lambda c: sum(c) > 0)


def comparison(loss: float, low: float, high: float, tolerance: float = 0.01, rows: int = 500) -> Comparison:
    return Comparison("accuracy", rows, 0.9, 0.9 - loss, loss, low, high, tolerance)


@pytest.mark.parametrize(
    ("loss", "low", "high", "verdict"),
    [
        (0.0, -0.005, 0.005, "passed"),
        (-0.02, -0.05, 0.01, "passed"),
        (0.0, -0.05, 0.05, "undecided"),
        (0.011, -0.01, 0.03, "failed"),
        (0.5, 0.4, 0.6, "failed"),
    ],
)
def test_verdicts(loss: float, low: float, high: float, verdict: Verdict) -> None:
    found, why = judge(comparison(loss, low, high))
    assert found == verdict
    assert ("such rows would decide" in why) == (verdict == "undecided")


def test_the_rows_that_are_asked_for_would_do() -> None:
    loss, low, high = paired_accuracy(0, 0, 100)
    assert judge(comparison(loss, low, high, rows=100))[0] == "undecided"
    needed = rows_needed(comparison(loss, low, high, rows=100))
    assert needed is not None
    loss, low, high = disagreement(0, 385)
    assert high <= 0.01 < disagreement(0, 370)[2]
    assert rows_needed(comparison(0.01, 0.0, 0.02)) is None


@given(COUNTS)
def test_the_loss_is_in_its_interval(counts: tuple[int, int, int]) -> None:
    better, worse, _ = counts
    loss, low, high = paired_accuracy(better, worse, sum(counts))
    assert low <= loss <= high and low < high
    p, low, high = disagreement(worse, sum(counts))
    assert 0 <= low <= p + 1e-12 and p - 1e-12 <= high <= 1


@pytest.mark.parametrize(("different", "rows"), [(0, 30), (1, 100), (17, 500), (500, 500)])
def test_disagreement_is_wilsons(different: int, rows: int) -> None:
    expected = stats.binomtest(different, rows).proportion_ci(method="wilson")
    assert disagreement(different, rows)[1:] == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_candidate_beyond_the_tolerance_seldom_passes() -> None:
    """At a true loss of exactly the tolerance at most 2.5 % may pass, and some noise of the simulation."""
    drawn = np.random.default_rng(7)
    for rows, differing in ((300, 0.05), (1000, 0.1), (3000, 0.03)):
        worse, better = (differing + 0.02) / 2, (differing - 0.02) / 2
        counts = drawn.multinomial(rows, [better, worse, 1 - differing], 4000)
        passed = sum(paired_accuracy(int(b), int(w), rows)[2] <= 0.02 for b, w, _ in counts)
        assert passed / 4000 < 0.035, (rows, differing, passed)


def test_metrics_are_those_of_scikit_learn() -> None:
    drawn = np.random.default_rng(1)
    labels = (drawn.random(200) < 0.4).astype(np.float64)
    scores = np.round(labels * 0.3 + drawn.random(200), 1)  # with ties
    assert SCORES["auc"](labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert SCORES["r2"](labels, scores) == pytest.approx(r2_score(labels, scores))
    assert SCORES["rmse"](labels, scores) == pytest.approx(root_mean_squared_error(labels, scores))


NAMES: tuple[CandidateName, ...] = ("graph", "dynamic-int8", "static-int8")
REPORT = st.tuples(
    st.sampled_from(("passed", "failed", "undecided", "not tried")), st.integers(1, 2000), st.floats(0.1, 10)
)


@given(st.tuples(REPORT, REPORT, REPORT), st.none() | st.sampled_from(NAMES))
def test_what_is_chosen_has_passed_and_gains_something(
    found: tuple[tuple[Verdict, int, float], ...], pick: CandidateName | None
) -> None:
    made = [
        CandidateReport(name, verdict, "why", size, 1.0, speed)
        for name, (verdict, size, speed) in zip(NAMES, found, strict=True)
    ]
    chosen, why = choose(1000, made, pick)
    by_name = {one.name: one for one in made}
    passed = [one for one in made if one.verdict == "passed"]
    assert why
    if pick is not None:
        assert chosen == (pick if by_name[pick].verdict == "passed" else None)
    elif chosen is not None:
        best = by_name[chosen]
        assert best in passed and best.speedup is not None and best.size_bytes is not None
        assert best.speedup >= 1.05 or best.size_bytes * 1.05 <= 1000
    else:
        assert all((one.speedup or 0) < 1.05 and (one.size_bytes or 0) * 1.05 > 1000 for one in passed)
