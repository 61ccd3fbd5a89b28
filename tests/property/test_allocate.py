"""A traffic change moves exactly the share that it must."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import InvalidInput
from headrace.core.snapshot import SLOTS, Slots
from headrace.traffic.allocate import allocate, continues, slot_counts, slots_of, weights_of, with_share

VERSIONS = st.integers(1, 8)
COUNTS = st.dictionaries(VERSIONS, st.integers(1, 1000), min_size=1, max_size=6)
"""Relative shares; `as_weights` makes percents of them."""


def as_weights(shares: dict[int, int]) -> dict[int, float]:
    total = sum(shares.values())
    return {version: share * 100 / total for version, share in shares.items()}


def owners(split: tuple[Slots, ...]) -> list[int]:
    found: list[int] = []
    for part in split:
        found += [part.version] * (part.end - len(found))
    return found


@given(st.lists(COUNTS, min_size=1, max_size=5))
def test_what_moves_is_the_total_variation_distance(history: list[dict[int, int]]) -> None:
    split: tuple[Slots, ...] = ()
    before: dict[int, int] | None = None
    for shares in history:
        new, after = allocate(split, as_weights(shares)), slot_counts(as_weights(shares))
        assert len(owners(new)) == SLOTS and {v: owners(new).count(v) for v in after} == after
        if before is not None:
            moved = sum(a != b for a, b in zip(owners(split), owners(new), strict=True))
            distance = sum(abs(before.get(v, 0) - after.get(v, 0)) for v in before.keys() | after.keys()) // 2
            assert moved == distance
        split, before = new, after


@given(COUNTS, COUNTS)
def test_a_version_that_grows_keeps_all_that_it_had(first: dict[int, int], second: dict[int, int]) -> None:
    old = allocate((), as_weights(first))
    new = allocate(old, as_weights(second))
    had, has = slot_counts(as_weights(first)), slot_counts(as_weights(second))
    for was, now in zip(owners(old), owners(new), strict=True):
        if has.get(was, 0) >= had[was]:
            assert now == was


@given(COUNTS)
def test_neighbouring_ranges_differ_and_end_at_the_last_slot(shares: dict[int, int]) -> None:
    split = allocate(allocate((), {1: 100.0}), as_weights(shares))
    assert split[-1].end == SLOTS
    assert all(a.end < b.end and a.version != b.version for a, b in itertools.pairwise(split))


@given(COUNTS, VERSIONS, st.floats(0, 100))
def test_a_share_given_to_one_is_taken_from_the_others_in_proportion(
    shares: dict[int, int], version: int, percent: float
) -> None:
    old = allocate((), as_weights(shares))
    weights = with_share(weights_of(old), version, percent)
    got = slots_of(allocate(old, weights))  # whatever the share, it can be allocated
    others = slots_of(old)
    del others[version]
    if not others:
        assert got == {version: SLOTS}
        return
    assert abs(got[version] - percent * SLOTS / 100) <= 1 and (got[version] > 0) == (percent > 0)
    for other, had in others.items():
        assert abs(got[other] - had * (SLOTS - got[version]) / others.total()) < 1


def test_a_share_too_small_to_scale_down_goes_to_nothing_rather_than_fail() -> None:
    assert with_share({1: 99.99, 2: 0.01}, 3, 60) == {1: 40.0, 3: 60.0}


@pytest.mark.parametrize(
    ("start", "now", "new", "step"),
    [
        ({1: 100}, {1: 90, 2: 10}, {1: 50, 2: 50}, True),
        ({1: 100}, {1: 90, 2: 10}, {2: 100}, True),
        ({1: 50, 2: 50}, {1: 45, 2: 45, 3: 10}, {3: 100}, True),
        ({1: 100}, {2: 100}, {2: 90, 3: 10}, False),  # another version's rollout
        ({1: 100}, {1: 50, 2: 50}, {1: 90, 2: 10}, False),  # a step back
        ({1: 90, 2: 10}, {1: 50, 2: 50}, {2: 100}, False),  # it was there from the start
        ({1: 100}, {1: 80, 2: 10, 3: 10}, {1: 60, 2: 20, 3: 20}, False),  # two at once are an experiment
        ({1: 100}, {1: 90, 2: 10}, {1: 90, 2: 10}, False),
    ],
)
def test_what_is_a_further_step_of_a_rollout(
    start: dict[int, float], now: dict[int, float], new: dict[int, float], step: bool
) -> None:
    first = allocate((), start)
    second = allocate(first, now)
    assert continues(first, second, allocate(second, new)) is step


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ({1: 100.0, 2: math.nan}, "weights.2"),
        ({1: math.inf}, "weights.1"),
        ({1: 110.0, 2: -10.0}, "weights.2"),
        ({1: 50.0}, "weights"),
        ({}, "weights"),
        ({1: 99.999, 2: 0.001}, "weights.2"),
    ],
)
def test_weights_that_cannot_be(weights: dict[int, float], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        allocate((), weights)
    assert caught.value.field == field


def test_weights_come_back_as_they_were_set() -> None:
    assert weights_of(allocate((), {1: 12.34, 2: 87.66})) == {1: 12.34, 2: 87.66}
