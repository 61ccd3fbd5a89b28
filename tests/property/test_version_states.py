"""A version's states: whatever is asked, a step of the table is taken or nothing changes."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.controlplane import accounts
from headrace.core.database import connect, metadata, transaction
from headrace.core.golden import Golden, GoldenFault, GoldenResult
from headrace.core.resources import Quota, VersionState
from headrace.core.states import IllegalTransition
from headrace.registry import lifecycle
from headrace.registry import store as registry
from headrace.registry.states import VERSION

STATES: tuple[VersionState, ...] = get_args(VersionState)
PASSES, FAILS = GoldenResult("a"), GoldenResult("a", (GoldenFault("b"),))
MOVES = st.sampled_from(STATES).map(lambda to: ("move", to))
RUNS = st.booleans().map(lambda passes: ("tested", passes))


def test_the_table_names_every_state_and_no_other() -> None:
    assert set(VERSION) == set(STATES)
    assert all(new in VERSION for following in VERSION.values() for new in following)


def test_there_is_one_way_up_and_none_back_from_the_end() -> None:
    assert [old for old in STATES if "approved" in VERSION[old]] == ["validated"]
    assert VERSION["retired"] == ()
    assert all("retired" in VERSION[old] for old in STATES if old != "retired")
    assert VERSION["approved"] == ("retired",)


@given(st.booleans(), st.lists(MOVES | RUNS, max_size=12))
def test_any_sequence_of_steps(begins_well: bool, steps: list[tuple[str, VersionState | bool]]) -> None:
    engine = connect("sqlite://")
    metadata.create_all(engine)
    golden = Golden([])
    with transaction(engine) as c:
        tenant = accounts.create_tenant(c, "t", Quota())
        model = registry.ensure_model(c, tenant.index, "m").id
        lifecycle.begin(c, model, 1, "hr_a", golden, [PASSES if begins_well else FAILS])
        state: VersionState = "validated" if begins_well else "registered"
        for kind, value in steps:
            before = lifecycle.find(c, model, 1)
            assert before.state == state
            if kind == "move":
                to: VersionState = value  # type: ignore[assignment]
                legal = to in VERSION[state]
            else:
                to = "validated" if value else "registered"
                if state == "approved" and value:
                    to = state
                legal = to == state or to in VERSION[state]
            try:
                if kind == "move":
                    lifecycle.move(c, before, to, "hr_b")
                else:
                    lifecycle.tested(c, before, golden, [PASSES if value else FAILS], "hr_b")
            except IllegalTransition:
                assert not legal and lifecycle.find(c, model, 1) == before
            else:
                assert legal
                state = to
    engine.dispose()


@pytest.mark.parametrize("state", STATES)
def test_a_step_to_itself_is_none(state: VersionState) -> None:
    assert state not in VERSION[state]
