from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import InvalidInput
from headrace.core.snapshot import SLOTS, Slots
from headrace.traffic.allocate import allocate, slot_counts, weights_of, with_share
from headrace.traffic.decide import compile_policy, edge_of, slot_of

Splits = st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any)


def percents(parts: list[int]) -> dict[int, float]:
    return {version + 1: part * 100 / sum(parts) for version, part in enumerate(parts)}


def owners(split: tuple[Slots, ...]) -> list[int]:
    found: list[int] = []
    for part in split:
        found += [part.version] * (part.end - len(found))
    return found


@given(Splits, Splits)
def test_a_change_moves_only_the_share_that_it_must(before: list[int], after: list[int]) -> None:
    old = allocate((), percents(before))
    new = allocate(old, percents(after))
    a, b = slot_counts(percents(before)), slot_counts(percents(after))
    distance = sum(max(b.get(v, 0) - a.get(v, 0), 0) for v in a.keys() | b.keys())
    moved = sum(x != y for x, y in zip(owners(old), owners(new), strict=True))
    assert moved == distance
    assert len(owners(new)) == SLOTS


@given(Splits)
def test_a_split_has_the_weights_that_were_asked_for(parts: list[int]) -> None:
    wanted = percents(parts)
    got = weights_of(allocate((), wanted))
    assert all(abs(got.get(v, 0.0) - w) <= 100 / SLOTS for v, w in wanted.items())


@pytest.mark.parametrize("weights", [{1: 50.0}, {1: -1.0, 2: 101.0}, {1: float("nan")}, {1: float("inf")}, {}])
def test_weights_that_are_no_split_are_refused(weights: dict[int, float]) -> None:
    with pytest.raises(InvalidInput, match="weights"):
        allocate((), weights)


@given(st.binary(max_size=40), st.binary(min_size=16, max_size=16))
def test_the_decision_is_the_owner_of_the_units_slot(unit: bytes, salt: bytes) -> None:
    split = allocate((), {1: 50.0, 2: 30.0, 3: 20.0})
    decide = compile_policy(split, {1: 1, 2: 2, 3: 3}, {}, salt)
    assert decide(0, unit) == owners(split)[slot_of(salt, unit)]


def test_overrides_come_before_hashing_and_a_missing_version_is_none() -> None:
    split = allocate((), {1: 50.0, 2: 50.0})
    decide = compile_policy(split, {1: "one"}, {7: 1, 8: 2}, b"salt")
    assert {decide(7, b"%d" % k) for k in range(50)} == {"one"}
    assert {decide(8, b"%d" % k) for k in range(50)} == {None}
    assert {decide(0, b"%d" % k) for k in range(50)} == {"one", None}


def test_a_ramp_keeps_whom_it_moved() -> None:
    split = allocate((), {1: 100.0})
    moved: set[bytes] = set()
    units = [b"user-%d" % k for k in range(5000)]
    for percent in (1.0, 5.0, 25.0, 50.0, 100.0):
        split = allocate(split, {1: 100 - percent, 2: percent})
        decide = compile_policy(split, {1: 1, 2: 2}, {}, b"salt")
        now = {unit for unit in units if decide(0, unit) == 2}
        assert moved <= now
        assert abs(len(now) / len(units) - percent / 100) < 0.02
        moved = now


DECISIONS = """
from headrace.traffic.allocate import allocate
from headrace.traffic.decide import compile_policy
split = allocate(allocate((), {1: 100.0}), {1: 60.0, 2: 30.0, 3: 10.0})
decide = compile_policy(split, {1: 1, 2: 2, 3: 3}, {}, b"salt")
decisions = [decide(0, b"user-%d" % k) for k in range(500)]
"""


def test_decisions_are_the_same_in_any_process() -> None:
    here: dict[str, list[int]] = {}
    exec(DECISIONS, here)
    assert set(here["decisions"]) == {1, 2, 3}
    for hash_seed in ("0", "1", "random"):
        command = [sys.executable, "-c", DECISIONS + "print(decisions)"]
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        assert out.strip() == str(here["decisions"])


@given(Splits, st.lists(st.floats(1, 99), min_size=1, max_size=4))
def test_of_the_units_a_ramp_moves_only_the_share_that_it_adds(parts: list[int], ramp: list[float]) -> None:
    """Whatever the split before, each unit stays or goes to the version that ramps up."""
    new = 99
    split = allocate((), percents(parts))
    units = [b"user-%d" % k for k in range(1000)]
    before = decisions(split, units)
    for percent in sorted(ramp):
        had = weights_of(split).get(new, 0.0)
        split = allocate(split, with_share(weights_of(split), new, percent))
        after = decisions(split, units)
        moved = [unit for unit in units if before[unit] != after[unit]]
        assert all(after[unit] == new for unit in moved)
        share = (weights_of(split)[new] - had) / 100
        assert abs(len(moved) / len(units) - share) < 0.08  # five standard deviations of a thousand units
        before = after


def decisions(split: tuple[Slots, ...], units: list[bytes]) -> dict[bytes, int | None]:
    versions = {part.version: part.version for part in split}
    decide = compile_policy(split, versions, {}, b"salt")
    return {unit: decide(0, unit) for unit in units}


def test_edges_part_the_hashes_exactly() -> None:
    for slot in (1, 4999, 5000, 9999):
        edge = int.from_bytes(edge_of(slot), "big")
        assert edge * SLOTS >> 64 == slot
        assert (edge - 1) * SLOTS >> 64 == slot - 1
