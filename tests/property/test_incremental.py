"""What is done in steps is what would be done from scratch: routing state, snapshot, routing table and reconciliation,
after any sequence of changes, looked at whenever one likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from headrace.controlplane import accounts
from headrace.controlplane.attention import Attention
from headrace.controlplane.routing_state import NOTHING, ModelState, RoutingState, read
from headrace.controlplane.snapshots import Snapshots, endpoints_of, key_route, model_route, tenant_route
from headrace.core import snapshot
from headrace.core.database import connect, metadata, now, transaction
from headrace.core.resources import ModelUpdate, Quota
from headrace.core.signature import Signature
from headrace.core.snapshot import ReplicaRoute, Snapshot, State
from headrace.core.specs import EngineOptions, ReplicaSpec, ReplicaState, ReplicaStatus, ServedVersion
from headrace.deploy import store as deploy_store
from headrace.deploy.reconcile import Memory, Plan, Want, reconcile
from headrace.registry import lifecycle
from headrace.registry import store as registry
from headrace.registry.store import VersionRow
from headrace.router.table import Table
from headrace.traffic import store as traffic
from headrace.traffic.allocate import allocate
from headrace.traffic.store import NONE

SIGNATURE, OPTIONS = Signature((), ()), EngineOptions()
MODELS, VERSIONS, TENANTS, LOOKS = 3, 2, 3, 14
STATES: tuple[ReplicaState, ...] = ("starting", "loading", "ready", "draining", "crashed", "failed", "stopped")


class Link:
    """The far end of a routing table: it only remembers that it was let go."""

    def __init__(self, replica: str, address: str) -> None:
        self.replica = replica
        self.retired = False

    def retire(self) -> None:
        self.retired = True


class World:
    """A store with a few tenants and models, and a fleet."""

    def __init__(self, c: Connection) -> None:
        self.c = c
        self.statuses: dict[str, ReplicaStatus] = {}
        self.tenants = [accounts.create_tenant(c, f"t{n}", Quota()).index for n in range(TENANTS)]
        self.models: list[int] = []
        self.keys: list[str] = []
        self.births = 0

    def model(self, n: int) -> int:
        """The n-th model; several tenants have models of one name."""
        while len(self.models) <= n:
            made = len(self.models)
            self.models.append(registry.ensure_model(self.c, self.tenants[made % 2], f"m{made // 2}").id)
            for version in range(1, VERSIONS + 1):
                row = VersionRow(
                    self.models[-1], version, "onnx", "0" * 64, 1, "m", SIGNATURE, OPTIONS, {}, {}, "", now(), "t"
                )
                registry.add_version(self.c, row)
        return self.models[n]

    def do(self, verb: str, m: int, v: int, t: int, n: int) -> None:
        """A change of the kind `verb`."""
        c, model, tenant = self.c, self.model(m), self.tenants[t]
        found = deploy_store.find(c, model, v)
        if verb == "quota":
            accounts.update_tenant(
                c, tenant, {"rate_per_s": float(n + 1), "state": "suspended" if n == 5 else "active"}
            )
        elif verb == "key":
            self.keys.append(accounts.create_key(c, tenant, "viewer", "")[0].id)
        elif verb == "revoke" and self.keys:
            accounts.revoke_key(c, self.keys[n % len(self.keys)])
        elif verb == "settings":
            registry.update_model(c, model, ModelUpdate(timeout_s=float(n + 1), body_max_bytes=(n % 3 + 1) << 20))
        elif verb == "grant":
            registry.grant(c, model, tenant)
        elif verb == "ungrant":
            registry.revoke_grant(c, model, tenant)
        elif verb == "split":
            before = traffic.current(c, model).split
            traffic.append(c, model, allocate(before, {v: 100.0 - 10 * n, v % VERSIONS + 1: 10.0 * n}))
            deploy_store.mark_traffic(c, model, {v})
        elif verb == "rollback":
            traffic.roll_back(c, model)
        elif verb == "pin":
            traffic.set_override(c, model, tenant, v)
        elif verb == "unpin":
            traffic.set_override(c, model, tenant, None)
        elif verb == "alias":
            lifecycle.set_alias(c, model, f"a{n % 2}", None if n == 5 else v)
        elif verb == "deploy":
            deploy_store.create(c, model, v, n % 3, 1 + n % 2, None)
        elif verb == "scale" and found is not None:
            deploy_store.scale(c, found, n % 3)
        elif verb == "given" and found is not None:
            deploy_store.traffic_done(c, model, v)
        elif verb == "undeploy" and found is not None:
            deploy_store.remove(c, model, v)
        elif verb == "replica":
            self.births += 1
            deploy_store.create(c, model, v, 1 + n % 2, 1 + n % 2, None)
            row = next(row for row in registry.list_models(c) if row.id == model)
            served = ServedVersion(0, f"t{row.tenant}/{row.name}", v, "onnx", "", "", SIGNATURE, OPTIONS)
            spec = ReplicaSpec(f"r{self.births}", f"unix:/r{self.births}", (served,), 1 + n % 2, "", 1.0)
            self.statuses[spec.id] = ReplicaStatus(spec, "ready", 1, "", {})
        elif verb == "state" and self.statuses:
            id_ = sorted(self.statuses)[n % len(self.statuses)]
            self.statuses[id_] = ReplicaStatus(self.statuses[id_].spec, STATES[(m + v + t) % len(STATES)], 1, "why", {})
        elif verb == "forget" and self.statuses:
            del self.statuses[sorted(self.statuses)[n % len(self.statuses)]]

    def ready(self) -> list[ReplicaStatus]:
        return [status for status in self.statuses.values() if status.state == "ready"]


VERBS = (
    "quota", "key", "revoke", "settings", "grant", "ungrant", "split", "rollback", "pin", "unpin", "alias", "deploy",
    "scale", "given", "undeploy", "replica", "state", "forget",
)  # fmt: skip
FLEET = ("deploy", "scale", "undeploy", "replica", "state", "forget")


def steps_of(verbs: tuple[str, ...]) -> st.SearchStrategy[list[list[tuple[Any, ...]]]]:
    """Changes between one look and the next. Each example does with a few kinds of change, so that some come often."""

    def of(few: set[str]) -> st.SearchStrategy[list[list[tuple[Any, ...]]]]:
        change = st.tuples(
            st.sampled_from(sorted(few)),
            st.integers(0, MODELS - 1),
            st.integers(1, VERSIONS),
            st.integers(0, TENANTS - 1),
            st.integers(0, 5),
        )
        return st.lists(st.lists(change, max_size=3), max_size=LOOKS)

    return st.sets(st.sampled_from(verbs), min_size=2, max_size=6).flatmap(of)


Look = Callable[[World], None]


def play(steps: list[list[tuple[Any, ...]]], look: Look) -> None:
    """Do the steps on an empty store, and look after each."""
    engine = connect("sqlite://")
    metadata.create_all(engine)
    try:
        with transaction(engine) as connection:
            world = World(connection)
            look(world)
            for step in steps:
                for change in step:
                    world.do(*change)
                look(world)
    finally:
        engine.dispose()


def whole_state(c: Connection) -> tuple[dict[int, Any], dict[str, Any], dict[int, ModelState]]:
    """Tenants, active keys and models as the tables have them, all read anew by queries of another make."""
    tenants = {tenant.index: tenant for tenant in accounts.list_tenants(c)}
    grants, policies, pins = registry.list_grants(c), traffic.list_current(c), traffic.list_overrides(c)
    models = {}
    for row in registry.list_models(c):
        here = tuple(one for one in deploy_store.list_all(c) if one.model == row.id)
        versions = {one.version: registry.find_version(c, row.id, one.version) for one in here}
        policy, back = policies.get(row.id, (NONE, None))
        models[row.id] = ModelState(
            row,
            f"{tenants[row.tenant].name}/{row.name}",
            tuple(grants.get(row.id, ())),
            policy,
            back,
            pins.get(row.id, {}),
            lifecycle.list_aliases(c, [row.id]).get(row.id, {}),
            here,
            versions,  # type: ignore[arg-type]
        )
    return tenants, {key.id: key for key in accounts.list_keys(c) if key.state != "revoked"}, models


def whole_snapshot(world: World, epoch: int) -> Snapshot:
    """The snapshot, built from all that there is."""
    tenants, keys, models = whole_state(world.c)
    served = endpoints_of(world.ready(), {model.id for model in models.values()})
    built = State()
    built.apply(
        Snapshot(
            epoch,
            0,
            tuple(map(tenant_route, tenants.values())),
            tuple(map(key_route, keys.values())),
            tuple(ReplicaRoute(status.spec.id, status.spec.address) for status in world.ready()),
            tuple(model_route(model, served) for model in models.values()),
            anonymous_tenant=1,
        )
    )
    return built.whole()


@given(steps_of(VERBS))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_state_and_snapshot_in_steps_are_those_from_scratch(steps: list[list[tuple[Any, ...]]]) -> None:
    state, built, follower, late = NOTHING, Snapshots("t1"), State(), State()
    epoch = 0

    def look(world: World) -> None:
        nonlocal state, epoch
        held = state
        before = (dict(held.tenants), dict(held.keys), dict(held.models))
        state = read(world.c, state)
        assert (state.tenants, state.keys, state.models) == whole_state(world.c)
        assert (held.tenants, held.keys, held.models) == before, "whoever holds the state before may go on with it"
        change = built.advance(state, world.ready(), epoch + 1)
        if change is not None:
            epoch += 1
            follower.apply(snapshot.decode(snapshot.encode(change)))
        expected = whole_snapshot(world, epoch)
        assert built.current.whole() == expected
        assert follower.whole() == expected
        assert built.advance(state, world.ready(), epoch + 1) is None, "nothing new is no change"
        if epoch % 3 == 0:
            late.apply(built.current.whole())  # one that missed changes is sent everything
            assert late.whole() == expected

    play(steps, look)


def shape(table: Table) -> Any:
    """What a table answers: per URL and caller the model, what each version's endpoints are, and decisions."""
    units = [str(n).encode() for n in range(20)]
    routes = {
        url: {
            caller: (
                target.model,
                {v: [(link.replica, slot) for link, slot in arm.endpoints] for v, arm in target.arms.items()},
                [getattr(target.decide(t, unit), "version", None) for unit in units for t in range(TENANTS)],
            )
            for caller, target in route.items()
        }
        for url, route in table.routes.items()
    }
    limits = {t.index: (t.interval_s, t.burst_s, t.max_in_flight) for t in table.tenants.values()}
    keys = dict(table.snapshot.keys)
    return routes, limits, keys, sorted(table.links), table.body_max, sorted(table.seen, key=str)


@given(steps_of(VERBS))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_table_in_steps_is_the_one_from_scratch(steps: list[list[tuple[Any, ...]]]) -> None:
    built, table, late = Snapshots("t1"), Table(Link), Table(Link)  # type: ignore[arg-type]
    links: set[Any] = set()
    state: RoutingState = NOTHING
    epoch = 0

    def look(world: World) -> None:
        nonlocal state, epoch
        state = read(world.c, state)
        change = built.advance(state, world.ready(), epoch + 1)
        if change is None:
            return
        epoch += 1
        table.update(change)
        links.update(table.links.values())
        fresh = Table(Link)  # type: ignore[arg-type]
        fresh.update(built.current.whole())
        assert shape(table) == shape(fresh)
        assert {link.replica for link in links if not link.retired} == set(table.links)
        if epoch % 3 == 0:
            late.update(built.current.whole())
            assert shape(late) == shape(fresh)

    play(steps, look)


@given(steps_of(FLEET), st.lists(st.sampled_from([0.0, 0.1, 5.0, 70.0]), min_size=LOOKS + 1, max_size=LOOKS + 1))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_look_at_what_moved_decides_as_a_look_at_everything(
    steps: list[list[tuple[Any, ...]]], pauses: list[float]
) -> None:
    attention, draining = Attention(), set[str]()
    all_memory: dict[Any, Memory] = {}
    memory: dict[Any, Memory] = {}
    standings: dict[Any, Any] = {}
    state: RoutingState = NOTHING
    clock, waits = 0.0, iter(pauses)

    def wants(models: dict[int, ModelState]) -> list[Want]:
        return [
            Want((model.id, d.version), d.replicas, d.revision, d.threads)
            for model in models.values()
            for d in model.deployments
        ]

    def told(plan: Plan) -> tuple[list[Any], list[str], list[str], float | None]:
        return sorted(plan.start), sorted(plan.stop), sorted(plan.forget), plan.wake_at

    def look(world: World) -> None:
        nonlocal state, clock
        clock += next(waits)
        statuses = list(world.statuses.values())
        draining.intersection_update(world.statuses)
        state = read(world.c, state)
        full = reconcile(wants(state.models), statuses, draining, all_memory, clock)
        scope = attention.scope(state, statuses)
        notes = {target: memory.pop(target) for target in scope.targets if target in memory}
        plan = reconcile(wants(scope.models), scope.statuses, draining, notes, clock)
        memory.update(notes)
        for target in scope.targets:
            standings.pop(target, None)
        standings.update(plan.standings)
        attention.looked(state, statuses, scope, plan, notes)
        assert told(plan) == told(full)
        assert standings == full.standings
        draining.update(plan.stop)

    play(steps, look)
