"""What the platform writes by itself, over a real SQLite file: first shares of the traffic, and retirement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from headrace.controlplane import accounts, changes
from headrace.controlplane.routing_state import NOTHING, read
from headrace.controlplane.settle import due, settle
from headrace.controlplane.store import open_store
from headrace.core.database import now, transaction
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions
from headrace.deploy import store as deploy_store
from headrace.deploy.reconcile import Standing
from headrace.registry import store as registry
from headrace.registry.store import VersionRow
from headrace.traffic import store as traffic
from headrace.traffic.allocate import allocate, weights_of


class World:
    """A model whose versions a test deploys and calls ready."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        tenant = accounts.list_tenants(connection)[0]
        self.model = registry.ensure_model(connection, tenant.index, "m").id
        self.name = f"{tenant.name}/m"
        self.ready: dict[tuple[str, int], Standing] = {}

    def deploy(self, version: int, share: float | None = None, ready: bool = True) -> None:
        if registry.find_version(self.connection, self.model, version) is None:
            row = VersionRow(
                self.model, version, "onnx", "0" * 64, 1, "m.onnx", Signature((), ()), EngineOptions(), {}, {}, "",
                now(), "test",
            )  # fmt: skip
            registry.add_version(self.connection, row)
        deploy_store.create(self.connection, self.model, version, 1, 1, share)
        if ready:
            self.ready[self.name, version] = Standing("ready", 1, "")

    def set_traffic(self, weights: dict[int, float]) -> None:
        split = allocate(traffic.current(self.connection, self.model).split, weights)
        traffic.append(self.connection, self.model, split)
        deploy_store.mark_traffic(self.connection, self.model, set(weights))

    def settle(self) -> bool:
        changed = settle(self.connection, NOTHING, [self.model], self.ready)
        settle(self.connection, NOTHING, [self.model], self.ready)  # what the first made possible
        assert not due(read(self.connection).models.values(), self.ready), "it comes to rest"
        return changed

    @property
    def weights(self) -> dict[int, float]:
        return weights_of(traffic.current(self.connection, self.model).split)

    @property
    def deployed(self) -> list[int]:
        return [one.version for one in deploy_store.list_all(self.connection)]

    def actions(self) -> list[tuple[str, str]]:
        rows = changes.page(self.connection, None, None, None, None, 100)
        return [(row.actor, row.action) for row in reversed(rows) if row.actor == "platform"]


@pytest.fixture
def world(tmp_path: Path, url: str) -> Iterator[World]:
    engine = open_store(url)
    with transaction(engine) as connection:
        accounts.bootstrap(connection, tmp_path / "credentials.toml", {"url": "http://127.0.0.1:1"})
        yield World(connection)
    engine.dispose()


def test_the_first_ready_version_takes_everything_and_it_is_written_down(world: World) -> None:
    world.deploy(1, ready=False)
    assert not world.settle() and not world.weights
    world.deploy(1)
    assert world.settle()
    assert world.weights == {1: 100.0}
    assert ("platform", "traffic.set") in world.actions()
    assert not world.settle(), "once"


def test_a_waiting_share_is_given_and_the_others_shrink_in_proportion(world: World) -> None:
    for version in (1, 2):
        world.deploy(version)
    world.set_traffic({1: 75, 2: 25})
    world.deploy(3, 20, ready=False)
    assert not world.settle()
    world.deploy(3, 20)
    assert world.settle()
    assert world.weights == {1: 60.0, 2: 20.0, 3: 20.0}


def test_a_second_version_without_a_share_waits_for_somebody_to_give_it_one(world: World) -> None:
    world.deploy(1)
    world.settle()
    world.deploy(2)
    assert not world.settle()
    assert world.weights == {1: 100.0}


def test_a_share_that_it_has_already_leaves_the_rollback_where_it_was(world: World) -> None:
    world.deploy(1)
    world.deploy(2)
    world.set_traffic({1: 100})
    world.set_traffic({2: 100})
    world.deploy(2, 100)
    assert world.settle()
    back = traffic.previous(world.connection, world.model)
    assert back is not None and weights_of(back.split) == {1: 100.0}


def test_a_first_version_deployed_with_no_share_gets_none(world: World) -> None:
    world.deploy(1, 0)
    assert not world.settle() and not world.weights
    world.deploy(2, 100)
    assert world.settle()
    assert world.weights == {2: 100.0}


def test_the_version_before_stays_warm_and_the_one_before_that_is_stopped(world: World) -> None:
    for version in (1, 2, 3):
        world.deploy(version)
        world.set_traffic({version: 100})
        world.settle()
    assert world.deployed == [2, 3]
    assert world.actions()[-1] == ("platform", "deployment.retire")


def test_who_is_pinned_or_waits_for_traffic_is_not_retired(world: World) -> None:
    for version in (1, 2, 3, 4):
        world.deploy(version)
    traffic.set_override(world.connection, world.model, 0, 1)
    for version in (1, 2, 3, 4):
        world.set_traffic({version: 100})
    world.ready.pop((world.name, 2))
    world.deploy(2, 10, ready=False)
    world.settle()
    assert world.deployed == [1, 2, 3, 4]
