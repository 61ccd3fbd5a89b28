"""Placement and the optimiser keep their rules for any fleet and any replicas; checked by code of its own."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.devices import TIERS, Device
from headrace.deploy.placement import Demand, Packing
from headrace.deploy.rebalance import Item, Problem, may_begin, packing_of

KINDS = (("t4", 16), ("l40", 48), ("a100", 80))
ONE = st.tuples(st.sampled_from(KINDS), st.integers(0, 2), st.booleans())


@st.composite
def fleets(draw: st.DrawFn) -> list[Device]:
    found = draw(st.lists(ONE, min_size=1, max_size=8))
    return [
        Device(f"n{node}/gpu{k}", f"n{node}", tier, gib * 1024, 1.0, spot)
        for k, ((tier, gib), node, spot) in enumerate(found)
    ]


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    found = []
    for model in range(draw(st.integers(1, 8))):
        count = draw(st.integers(1, 3))
        memory = draw(st.floats(1, 50_000))
        compute = draw(st.one_of(st.none(), st.floats(0, 4)))
        tiers = tuple(draw(st.sets(st.sampled_from([tier for tier, _ in KINDS]), min_size=1)))
        found += [Demand(f"t/m{model}@1", memory, compute, tiers, draw(st.booleans()), count)] * count
    return found


def check(fleet: list[Device], placed: list[tuple[Device, Demand]]) -> None:
    for device in fleet:
        here = [demand for at, demand in placed if at == device]
        speed = TIERS[device.tier].speed
        part = [d.memory_mb / (0.9 * device.memory_mb) * 0.8 * speed if d.compute is None else d.compute for d in here]
        assert sum(d.memory_mb for d in here) <= 0.9 * device.memory_mb + 0.01
        assert sum(part) <= 0.8 * speed + 0.001
        assert all(device.tier in d.tiers and (d.spot or not device.spot) for d in here)
        for group, count in Counter(d.group for d in here).items():
            one = next(d for d in here if d.group == group)
            able = [
                d
                for d in fleet
                if d.tier in one.tiers
                and (one.spot or not d.spot)
                and one.memory_mb <= 0.9 * d.memory_mb + 0.01
                and (one.compute or 0) <= 0.8 * TIERS[d.tier].speed + 0.001
            ]
            assert (count - 1) * len(able) < one.replicas, "two on a device while there are others for them"


@given(fleets(), demands())
def test_greedy_keeps_the_rules_gives_reasons_and_does_it_again_the_same(
    fleet: list[Device], asked: list[Demand]
) -> None:
    choices = Packing(fleet, TIERS).place_all(asked)
    assert choices == Packing(list(reversed(fleet)), TIERS).place_all(asked)
    assert all(choice.reason for choice in choices)
    check(fleet, [(c.device, d) for c, d in zip(choices, asked, strict=True) if c.device is not None])


@given(fleets(), demands(), st.integers(0, 99), st.sets(st.integers(0, 7)))
@settings(max_examples=25)
def test_the_optimiser_keeps_the_rules_and_the_budget_and_never_costs_more(
    fleet: list[Device], asked: list[Demand], seed: int, spent: set[int]
) -> None:
    optimise = pytest.importorskip("headrace.deploy.optimise").optimise
    choices = Packing(fleet, TIERS).place_all(asked)
    items = tuple(
        Item(
            f"r{k}", f"{d.group}"[:-2], f"{d.group}", c.device.id, d.memory_mb, d.compute, d.tiers, d.spot, d.replicas,
            f"{d.group}" not in {f"t/m{model}@1" for model in spent},
        )
        for k, (c, d) in enumerate(zip(choices, asked, strict=True))
        if c.device is not None
    )  # fmt: skip
    problem = Problem(tuple(fleet), TIERS, items, 1.0, seed, 1)
    solution = optimise(problem)
    by_id, targets = {d.id: d for d in fleet}, {move.replica: move.target for move in solution.moves}
    check(fleet, [(by_id[targets.get(item.id, item.device)], item.demand) for item in items])
    assert max(Counter(move.model for move in solution.moves).values(), default=0) <= 1
    assert not {move.model for move in solution.moves} & {f"t/m{model}" for model in spent}
    assert solution.bound_per_h - 1e-6 <= solution.price_after_per_h <= solution.price_per_h + 1e-9
    assert bool(solution.moves) == (solution.price_after_per_h < solution.price_per_h)
    begun = may_begin(solution.moves, {item.id: item for item in items}, packing_of(problem))
    both = [(by_id[item.device], item.demand) for item in items] + [
        (by_id[move.target], next(item.demand for item in items if item.id == move.replica)) for move in begun
    ]
    for device in fleet:
        assert sum(d.memory_mb for at, d in both if at == device) <= 0.9 * device.memory_mb + 0.01
