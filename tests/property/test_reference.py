"""Reference statistics: bins and counts of any values, against NumPy and SciPy, and that counts add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from headrace.core.reference import Feature
from headrace.observe.reference import BINS, CATEGORIES, describe, merge, tally
from tests import models

NUMBERS = arrays(
    np.float64, st.integers(0, 300), elements=st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, np.nan, np.inf])
)
TEXTS = st.lists(st.none() | st.binary(max_size=2) | st.booleans(), max_size=300)


def of(values: Any) -> Feature:
    return describe(np.asarray(values), "x", 0, "x")


@given(NUMBERS)
def test_bins_hold_every_finite_value_once(values: np.ndarray[Any, Any]) -> None:
    found = of(values)
    finite = np.sort(values[np.isfinite(values)])
    assert (found.count, found.missing) == (len(finite), np.isnan(values).sum())
    assert found.count + found.missing + found.infinite == len(values)
    assert sum(found.counts) == found.count and (found.above, found.below) == (0, 0)
    assert len(found.edges) == len(found.counts) <= BINS and list(found.edges) == sorted(set(found.edges))
    assert all(found.counts), "an empty bin would make PSI infinite"
    for edge, upto in zip(found.edges, np.cumsum(found.counts), strict=True):
        assert upto == (finite <= edge).sum()
    if len(finite):
        assert (found.minimum, found.maximum, found.edges[-1]) == (finite[0], finite[-1], finite[-1])
        assert found.mean == pytest.approx(finite.mean()) and found.std == pytest.approx(finite.std())


@given(NUMBERS, NUMBERS, NUMBERS)
def test_counts_by_the_same_bins_add_up_in_any_order(a: Any, b: Any, c: Any) -> None:
    bins = of(a)
    parts = [tally(bins, values) for values in (a, b, c)]
    whole = tally(bins, np.concatenate([a, b, c]))
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        one, two, three = (parts[k] for k in order)
        for merged in (merge(merge(one, two), three), merge(one, merge(two, three))):
            for name in Feature.__struct_fields__:
                expected = getattr(whole, name)
                if name in ("mean", "std") and expected is not None:
                    expected = pytest.approx(expected, rel=1e-9, abs=1e-5)
                assert getattr(merged, name) == expected, name


@given(TEXTS, TEXTS)
def test_categories_are_counted_and_add_up(a: list[object], b: list[object]) -> None:
    one, two = np.empty(len(a), object), np.empty(len(b), object)
    one[:], two[:] = a, b
    found = describe(one, "x", 0, "x")
    assert found.kind == "categorical" and len(found.categories) <= CATEGORIES
    assert sum(found.counts) + found.other + found.missing == len(a)
    whole = tally(found, np.concatenate([one, two]))
    assert merge(found, tally(found, two)) == whole


def test_different_bins_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="different bins"):
        merge(of([1.0, 2.0]), of([1.0, 3.0]))


def test_values_that_overflow_are_told_as_unknown() -> None:
    found = of([1e308, -1e308, 1e308])
    assert found.std is None and found.count == 3
    assert merge(found, found).std is None


def test_real_features_have_equal_bins_and_the_moments_of_scipy() -> None:
    x, _ = models.breast_cancer()
    for k in range(30):
        found = of(x[:, k])
        described = stats.describe(x[:, k].astype(np.float64), ddof=0)
        assert (found.minimum, found.maximum) == described.minmax
        assert found.mean == pytest.approx(described.mean) and found.std == pytest.approx(described.variance**0.5)
        counts = np.array(found.counts)
        if len(np.unique(x[:, k])) == len(x):  # without ties the quantiles are even
            assert counts.max() - counts.min() <= 1


def test_psi_and_ks_of_the_bins_are_those_of_the_values() -> None:
    x, y = models.breast_cancer()
    bins = of(x[y == 1, 0])
    live = tally(bins, x[y == 0, 0])
    p = np.array([*bins.counts, 0]) / bins.count
    q = np.array([*live.counts, live.above]) / live.count
    ks = np.abs(np.cumsum(p) - np.cumsum(q)).max()
    exact = stats.ks_2samp(x[y == 1, 0], x[y == 0, 0]).statistic
    assert exact - 2 / BINS <= ks <= exact
