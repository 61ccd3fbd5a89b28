"""Observe -> decide -> act: the deployment manager's loop in the control plane.

The decisions are `deploy.reconcile`'s and `settle`'s; here the world is read in and the decisions are carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection, Iterable
from copy import deepcopy
from dataclasses import replace

from sqlalchemy import Connection

from headrace.controlplane import accounts, changes, composing
from headrace.controlplane.artifacts import Artifacts
from headrace.controlplane.attention import Attention
from headrace.controlplane.publisher import Guard, Publisher
from headrace.controlplane.routing_state import ModelState, RoutingState
from headrace.controlplane.settle import due, settle
from headrace.controlplane.store import Store
from headrace.core.errors import Unavailable
from headrace.core.specs import ReplicaSpec, ServedVersion
from headrace.deploy.fleet import Fleet, replica_id
from headrace.deploy.reconcile import STARTING, Death, Memory, Plan, Standing, Target, Want, reconcile

log = logging.getLogger("headrace.deploy")
TICK_S = 1.0
STARTS_MAX = 2 * (os.cpu_count() or 1)
"""Replicas that start at the same time: more would only slow each other, and those that serve, down."""
PULLING_MAX = 8 * STARTS_MAX
"""Replicas that wait for their artifact at the same time: no processes yet, so they hold up nobody who can start."""
START_SEEN_S = 5.0
"""A replica that was asked for and has not shown by then was never started: it is asked for anew."""


class Manager:
    """The loop.

    Args:
        folder: where replicas' sockets go.
        control: the control plane's socket, to which replicas report.
        drain_s: how long a replica may finish what it has.
        guard: raises in a transaction where another control plane leads by now.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        publisher: Publisher,
        artifacts: Artifacts,
        folder: str,
        control: str,
        drain_s: float,
        guard: Guard = lambda _: None,
    ) -> None:
        self.standings: dict[Target, Standing] = {}
        self._store = store
        self._fleet = fleet
        self._publisher = publisher
        self._artifacts = artifacts
        self._folder = folder
        self._control = control
        self._drain_s = drain_s
        self._guard = guard
        self._memory: dict[Target, Memory] = {}
        self._attention = Attention()
        self._woken = asyncio.Event()
        self._starting: dict[str, float] = {}
        """Replica asked for -> until when to wait for it to show."""
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
            except Unavailable as error:  # the store is away: what runs goes on as it is, until it can be read again
                log.warning("the deployment manager waits: %s", error.message)
                pause = TICK_S
                continue
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
        statuses = self._fleet.statuses()
        if accounts.expired(self._publisher.state.keys.values()):
            await self._store.run(accounts.expire_keys)
        known = {status.spec.id for status in statuses}
        self._publisher.expected = set(self._fleet.routers)
        self._publisher.draining &= known
        await self._publisher.publish()  # first: a replica that is ready, or gone, is what callers wait for
        self._starting = {id_: end for id_, end in self._starting.items() if id_ not in known and now < end}
        if self._starting:
            # What was asked for has not shown yet: another look now would ask for it again.
            return Plan(standings=self.standings)
        state = self._publisher.state
        scope = self._attention.scope(state, statuses)
        wants = [
            Want((model.id, d.version), d.replicas, d.revision, d.threads, d.memory_mb)
            for model in scope.models.values()
            for d in model.deployments
        ]
        memory = {target: self._memory[target] for target in scope.targets if target in self._memory}
        if holding := self._fleet.holding:
            return self._hold(
                holding, reconcile(wants, scope.statuses, self._publisher.draining, deepcopy(memory), now)
            )
        plan = reconcile(wants, scope.statuses, self._publisher.draining, memory, now)
        for target in scope.targets:
            self._memory.pop(target, None)
            self.standings.pop(target, None)
        self._memory |= memory
        self.standings |= plan.standings
        await self._act(scope.models.values(), plan, now)
        if due(scope.models.values(), self.standings):  # seldom; then it is decided again, in the transaction
            await self._store.run(lambda c: self._settle(c, state, scope.models))
            self.wake()
            await self._publisher.publish()
        self._attention.looked(state, statuses, scope, plan, memory)
        return plan

    def _hold(self, why: str, plan: Plan) -> Plan:
        """Nothing can be started or stopped: say so of all that is not as it should be. The look is not remembered."""
        self.standings |= {
            target: replace(standing, detail=f"holding: {why}" + (f"; {standing.detail}" if standing.detail else ""))
            for target, standing in plan.standings.items()
            if standing.state not in ("stopped", "failed")
        }
        return Plan(standings=self.standings)

    def _settle(self, connection: Connection, before: RoutingState, models: Collection[int]) -> None:
        self._guard(connection)
        settle(connection, before, models, self.standings)

    async def _act(self, models: Iterable[ModelState], plan: Plan, now: float) -> None:
        if plan.stop:
            # Out of the snapshot before it is told: nothing new then comes to a replica that is draining.
            self._publisher.draining |= set(plan.stop)
            await self._publisher.publish()
        if plan.deaths:  # before their records are forgotten
            await self._store.run(lambda c: write_down(c, plan.deaths))
        for replica in plan.stop:
            await self._fleet.stop(replica)
        for replica in plan.forget:
            await self._fleet.forget(replica)
        by_name = {model.id: model for model in models}
        starting = sum(status.state in STARTING for status in self._fleet.statuses())
        pulling = sum(status.state == "pulling" for status in self._fleet.statuses())
        room = min(STARTS_MAX - starting, PULLING_MAX - pulling)
        for target in plan.start[: max(room, 0)]:  # the rest at a next look: a model of it is restless
            spec = self._spec(by_name[target[0]], target)
            self._starting[spec.id] = now + START_SEEN_S
            await self._fleet.start(spec)

    def _spec(self, model: ModelState, target: Target) -> ReplicaSpec:
        desired = next(d for d in model.deployments if d.version == target[1])
        row = model.versions[desired.version]
        id_ = replica_id(*target)
        served = ServedVersion(
            0,
            target[0],
            row.version,
            row.engine,
            str(self._artifacts.path(row.digest) or ""),
            row.digest,
            row.signature,
            row.options,
            row.size_bytes,
            composing.served(model.parts.get(row.version, ()), self._artifacts.path),
        )
        address = f"unix:{os.path.join(self._folder, id_[-17:])}"
        return ReplicaSpec(id_, address, (served,), desired.threads, self._control, self._drain_s, desired.memory_mb)


def write_down(connection: Connection, deaths: Iterable[Death]) -> None:
    """Each death in the audit, once, however often it is seen."""
    for death in deaths:
        tenant, _, model = death.target[0].partition("/")
        after = {"replica": death.replica, "detail": death.detail}
        record = changes.Record("replica.died", tenant, f"{model}@{death.target[1]}", None, after)
        if not changes.known(connection, record):
            changes.append(connection, changes.PLATFORM, record, None)
