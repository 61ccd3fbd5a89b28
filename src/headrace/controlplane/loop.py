"""Observe -> decide -> act: the deployment manager's loop in the control plane.

The decisions are `deploy.reconcile`'s; here they are read in, carried out, and what follows from a deployment's
readiness - its first share of the traffic - is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from sqlalchemy import Connection

from headrace.controlplane import changes
from headrace.controlplane.changes import Record
from headrace.controlplane.publisher import Publisher
from headrace.controlplane.routing_state import Reader, RoutingState
from headrace.controlplane.store import Store
from headrace.core.specs import ReplicaSpec, ServedVersion
from headrace.deploy import store as deploy_store
from headrace.deploy.fleet import replica_id
from headrace.deploy.local import LocalFleet
from headrace.deploy.reconcile import Memory, Plan, Standing, Target, Want, reconcile, retire
from headrace.registry.artifacts import Artifacts
from headrace.traffic import store as traffic_store
from headrace.traffic.allocate import allocate, weights_of, with_share

log = logging.getLogger("headrace.deploy")
TICK_S = 1.0


class Manager:
    """The loop.

    Args:
        folder: where replicas' sockets go.
        control: the control plane's socket, to which replicas report.
        drain_s: how long a replica may finish what it has.
    """

    def __init__(
        self,
        store: Store,
        fleet: LocalFleet,
        publisher: Publisher,
        artifacts: Artifacts,
        folder: str,
        control: str,
        drain_s: float,
    ) -> None:
        self.standings: dict[Target, Standing] = {}
        self._store = store
        self._fleet = fleet
        self._publisher = publisher
        self._artifacts = artifacts
        self._folder = folder
        self._control = control
        self._drain_s = drain_s
        self._memory: dict[Target, Memory] = {}
        self._reader = Reader()
        self._woken = asyncio.Event()
        self._starting: set[str] = set()
        fleet.watch(self.wake)

    def wake(self) -> None:
        """Tick now rather than at the next second."""
        self._woken.set()

    async def run(self) -> None:
        """Tick for ever; a tick that fails is logged and tried again."""
        pause = TICK_S
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
            self._woken.clear()
            try:
                plan = await self.tick()
            except Exception:
                log.exception("a tick of the deployment manager failed")
                pause = TICK_S
                continue
            pause = TICK_S
            if plan.wake_at is not None:
                pause = min(max(plan.wake_at - asyncio.get_running_loop().time(), 0.01), TICK_S)

    async def tick(self) -> Plan:
        """One look at the world, and what follows from it."""
        now = asyncio.get_running_loop().time()
        state = await self._store.run(self._reader)
        wants = [Want((state.id_of(d.model), d.version), d.replicas, d.revision) for d in state.desired]
        statuses = self._fleet.statuses()
        known = {status.spec.id for status in statuses}
        self._publisher.expected = set(self._fleet.routers)
        self._publisher.draining &= known
        if self._starting - known:
            # What was asked for has not shown yet: another look now would ask for it again.
            return Plan(standings=self.standings)
        self._starting.clear()
        plan = reconcile(wants, statuses, self._publisher.draining, self._memory, now)
        self.standings = plan.standings
        self._publisher.draining |= set(plan.stop)
        await self._publisher.publish()
        for replica in plan.stop:
            await self._fleet.stop(replica)
        for replica in plan.forget:
            await self._fleet.forget(replica)
        for target in plan.start:
            spec = self._spec(state, target)
            self._starting.add(spec.id)
            await self._fleet.start(spec)
        if await self._store.run(lambda c: self._settle(c, state, plan)):
            await self._publisher.publish()
            self.wake()
        return plan

    def _spec(self, state: RoutingState, target: Target) -> ReplicaSpec:
        desired = next(d for d in state.desired if (state.id_of(d.model), d.version) == target)
        row = state.versions[desired.model, desired.version]
        id_ = replica_id(*target)
        served = ServedVersion(
            0,
            target[0],
            row.version,
            row.engine,
            str(self._artifacts.path(row.digest)),
            row.digest,
            row.signature,
            row.options,
        )
        address = f"unix:{os.path.join(self._folder, id_[-17:])}"
        return ReplicaSpec(id_, address, (served,), desired.threads, self._control, self._drain_s)

    def _settle(self, connection: Connection, state: RoutingState, plan: Plan) -> bool:
        """Give waiting deployments their traffic, and stop what no policy needs; in one transaction. True when
        anything changed."""
        changed = False
        for desired in deploy_store.list_all(connection):
            if desired.model not in state.models:
                continue  # newer than this tick's look
            target = (state.id_of(desired.model), desired.version)
            standing = plan.standings.get(target)
            if standing is None or standing.state != "ready" or standing.ready < 1:
                continue
            policy = traffic_store.current(connection, desired.model)
            share = desired.traffic_on_ready
            if share is None and not policy.split and not desired.had_traffic:
                share = 100.0
            if share is None:
                continue
            before = weights_of(policy.split)
            give_share(connection, desired.model, target, before, share)
            deploy_store.traffic_done(connection, desired.model, desired.version)
            changed = True
        return self._retire(connection, state) or changed

    def _retire(self, connection: Connection, state: RoutingState) -> bool:
        policies = traffic_store.list_current(connection)
        pinned = traffic_store.list_overrides(connection)
        all_desired = deploy_store.list_all(connection)
        name = {d.model: state.id_of(d.model) for d in all_desired if d.model in state.models}
        number = {value: key for key, value in name.items()}
        gone = retire(
            [(name[d.model], d.version) for d in all_desired if d.had_traffic and d.model in name],
            {name[m]: weights_of(p.split) for m, (p, _) in policies.items() if m in name},
            {name[m]: weights_of(b.split) for m, (_, b) in policies.items() if b is not None and m in name},
            {name[m]: tuple(o.values()) for m, o in pinned.items() if m in name},
        )
        for model, version in gone:
            deploy_store.remove(connection, number[model], version)
            tenant, _, short = model.partition("/")
            entity = f"{short}@{version}"
            record = Record(
                "deployment.retire", tenant, entity, {"version": version}, None, f"headrace deploy {entity}"
            )
            changes.append(connection, "platform", record, "out of the policy and of the one before")
        return bool(gone)


def give_share(connection: Connection, model: int, target: Target, before: dict[int, float], share: float) -> None:
    """Put a policy in force that gives a version its share, and write it down."""
    tenant, _, name = target[0].partition("/")
    weights = with_share(before, target[1], share)
    policy = traffic_store.append(connection, model, allocate(traffic_store.current(connection, model).split, weights))
    deploy_store.mark_traffic(connection, model, set(weights_of(policy.split)))
    undo = f"headrace rollback {name}" if before else None
    record = Record(
        "traffic.set",
        tenant,
        name,
        {"weights": {str(v): w for v, w in before.items()}} if before else None,
        {"weights": {str(v): w for v, w in weights_of(policy.split).items()}},
        undo,
    )
    changes.append(connection, "platform", record, f"{name}@{target[1]} is ready")
