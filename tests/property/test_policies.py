"""A rollback puts back what was in force, slot for slot, and a rollback of the rollback undoes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from headrace.controlplane import accounts
from headrace.controlplane.store import open_store
from headrace.core.database import transaction
from headrace.core.resources import Quota
from headrace.registry import store as registry
from headrace.traffic import store as traffic
from headrace.traffic.allocate import allocate, weights_of

SPLITS = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4).map(
    lambda parts: {version: parts.count(version) * 100 / len(parts) for version in parts}
)


class Lab:
    """A store, and a new model for each history."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.models = 0

    def model(self, *history: dict[int, float]) -> int:
        self.models += 1
        model = registry.ensure_model(self.connection, 0, f"model{self.models}").id
        for weights in history:
            split = allocate(traffic.current(self.connection, model).split, weights)
            traffic.append(self.connection, model, split)
        return model

    def roll_back(self, model: int) -> dict[int, float]:
        assert traffic.roll_back(self.connection, model) is not None
        return weights_of(traffic.current(self.connection, model).split)


@pytest.fixture(scope="module")
def lab(new_database: Callable[[], str]) -> Iterator[Lab]:
    engine = open_store(new_database())
    with transaction(engine) as connection:
        accounts.create_tenant(connection, "default", Quota())
        yield Lab(connection)
    engine.dispose()


@given(history=st.lists(SPLITS, min_size=2, max_size=5))
def test_rolling_back_twice_comes_back_to_every_slot(lab: Lab, history: list[dict[int, float]]) -> None:
    model = lab.model(*history)
    now = traffic.current(lab.connection, model)
    back = traffic.previous(lab.connection, model)
    assert back is not None and back.epoch < now.epoch
    for expected in (back, now, back, now):
        traffic.roll_back(lab.connection, model)
        assert traffic.current(lab.connection, model).split == expected.split


def test_a_rollback_of_a_canary_leaves_what_served_before_it_and_not_an_older_version(lab: Lab) -> None:
    assert lab.roll_back(lab.model({1: 100}, {2: 100}, {2: 90, 3: 10})) == {2: 100}


def test_one_rollback_undoes_all_steps_of_a_rollout(lab: Lab) -> None:
    model = lab.model({1: 100}, {2: 100}, {2: 90, 3: 10}, {2: 50, 3: 50}, {3: 100})
    assert [lab.roll_back(model) for _ in range(3)] == [{2: 100}, {3: 100}, {2: 100}]


def test_a_step_after_a_rollback_goes_back_to_what_it_replaced(lab: Lab) -> None:
    model = lab.model({1: 100}, {1: 90, 2: 10})
    assert lab.roll_back(model) == {1: 100}
    traffic.append(lab.connection, model, allocate(traffic.current(lab.connection, model).split, {2: 100}))
    assert lab.roll_back(model) == {1: 100}


def test_there_is_nothing_before_the_first_policy(lab: Lab) -> None:
    for model in (lab.model(), lab.model({1: 100})):
        assert traffic.roll_back(lab.connection, model) is None
        assert traffic.previous(lab.connection, model) is None
