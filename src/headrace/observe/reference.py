"""Reference statistics: from values to bins that PSI, KS, Jensen-Shannon and Wasserstein distances are computed from.

Pure. Bins are the reference's own quantiles, so each holds about the same share of it, and PSI's noise is that of a
chi-square with as many degrees of freedom as there are bins, less one. Values that repeat a lot share a quantile: such
bounds are kept once. A feature of few values has a bin for each. Later values are counted by the same bins (`tally`),
and counts by the same bins add up (`merge`), in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import isfinite, sqrt
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from headrace.core.reference import Feature

Array = NDArray[Any]
BINS = 32
CATEGORIES = 64
TEXT_MAX = 100
"""Characters of a category; longer values are `other`."""


def describe(values: Array, tensor: str, column: int | None, name: str) -> Feature:
    """The statistics of a sample's values.

    Args:
        values: any shape; numbers, or objects (text, bytes, bool) for a categorical feature. Missing: NaN or None.
        tensor: whose they are.
        column: place in the tensor's row; None for all of it.
        name: for people.
    """
    flat = values.reshape(-1)
    if flat.dtype.kind in "iuf":
        finite = np.sort(_finite(flat))
        lowest = float(finite[0]) if len(finite) else None
        bins = Feature(tensor, column, name, "numeric", 0, edges=_edges(finite), lowest=lowest)
    else:
        found = Counter(text for text in map(_text, flat.tolist()) if text is not None and len(text) <= TEXT_MAX)
        most = sorted(found, key=lambda text: (-found[text], text))[:CATEGORIES]
        bins = Feature(tensor, column, name, "categorical", 0, categories=tuple(most))
    return tally(bins, flat)


def tally(bins: Feature, values: Array) -> Feature:
    """Values counted by the bins of another feature."""
    flat = values.reshape(-1)
    return _tally_categories(bins, flat.tolist()) if bins.kind == "categorical" else _tally_numbers(bins, flat)


def _tally_numbers(bins: Feature, flat: Array) -> Feature:
    numbers = flat.astype(np.float64)
    missing = int(np.isnan(numbers).sum())
    finite = _finite(flat)
    edges = np.array(bins.edges)
    places = np.searchsorted(edges, finite, "left")
    counts = np.bincount(places, minlength=len(edges) + 1)
    mean = std = None
    with np.errstate(over="ignore", invalid="ignore"):
        if len(finite):
            mean, std = _told(float(finite.mean())), _told(float(finite.std()))
    return replace(
        bins,
        count=len(finite),
        missing=missing,
        infinite=len(flat) - missing - len(finite),
        minimum=float(finite.min()) if len(finite) else None,
        maximum=float(finite.max()) if len(finite) else None,
        mean=mean,
        std=std,
        counts=tuple(counts[: len(edges)].tolist()),
        below=0 if bins.lowest is None else int((finite < bins.lowest).sum()),
        above=int(counts[len(edges)]),
    )


def _tally_categories(bins: Feature, items: Iterable[object]) -> Feature:
    found = Counter(map(_text, items))
    missing = found.pop(None, 0)
    counts = tuple(found.get(text, 0) for text in bins.categories)
    count = found.total()
    return replace(bins, count=count, missing=missing, counts=counts, other=count - sum(counts))


def merge(one: Feature, other: Feature) -> Feature:
    """Two tallies by the same bins as one. Raises ValueError for different bins."""
    if (one.kind, one.edges, one.lowest, one.categories) != (other.kind, other.edges, other.lowest, other.categories):
        raise ValueError(f"{one.name}: counted by different bins")
    mean, std = _moments(one, other)
    return replace(
        one,
        count=one.count + other.count,
        missing=one.missing + other.missing,
        infinite=one.infinite + other.infinite,
        minimum=min((m for m in (one.minimum, other.minimum) if m is not None), default=None),
        maximum=max((m for m in (one.maximum, other.maximum) if m is not None), default=None),
        mean=mean,
        std=std,
        counts=tuple(a + b for a, b in zip(one.counts, other.counts, strict=True)),
        other=one.other + other.other,
        below=one.below + other.below,
        above=one.above + other.above,
    )


def _moments(one: Feature, other: Feature) -> tuple[float | None, float | None]:
    """Mean and standard deviation of both together (Chan, Golub and LeVeque 1979)."""
    if not one.count or not other.count:
        full = one if one.count else other
        return full.mean, full.std
    if one.mean is None or other.mean is None or one.std is None or other.std is None:
        return None, None
    n, m = one.count, other.count
    delta = other.mean - one.mean
    mean = one.mean + delta * (m / (n + m))
    # `x * x`, not `x**2`: where a float overflows the first is infinite, the second raises.
    square = n * (one.std * one.std) + m * (other.std * other.std) + delta * delta * (n * (m / (n + m)))
    return _told(mean), _told(sqrt(square / (n + m)))


def _edges(ordered: Array) -> tuple[float, ...]:
    """Upper bounds of the bins of sorted values: each is one of them."""
    distinct = np.unique(ordered)
    if len(distinct) > BINS:
        ranks = -(-len(ordered) * np.arange(1, BINS + 1) // BINS) - 1
        distinct = np.unique(ordered[ranks])
    return tuple(distinct.tolist())


def _finite(flat: Array) -> Array:
    numbers = flat.astype(np.float64)
    return numbers[np.isfinite(numbers)]


def _told(value: float) -> float | None:
    """None for what has overflowed: JSON has no infinity."""
    return value if isfinite(value) else None


def _text(item: object) -> str | None:
    """A category's name; None for a missing value."""
    if item is None or item != item:
        return None
    if isinstance(item, bool):
        return "true" if item else "false"
    return item.decode("utf-8", "backslashreplace") if isinstance(item, bytes) else str(item)
