"""Observe -> decide -> act: the deployment manager's loop in the control plane.

The decisions are `deploy.reconcile`'s and `settle`'s; here the world is read in and the decisions are carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace

from sqlalchemy import Connection

from headrace.controlplane import accounts, changes, composing, placing
from headrace.controlplane.artifacts import Artifacts
from headrace.controlplane.attention import Attention
from headrace.controlplane.packs import Packs
from headrace.controlplane.placing import Placing
from headrace.controlplane.publisher import Guard, Publisher
from headrace.controlplane.routing_state import ModelState, RoutingState
from headrace.controlplane.settle import due, settle
from headrace.controlplane.store import Store
from headrace.core.errors import Unavailable
from headrace.core.specs import Packing, ReplicaSpec, ServedVersion
from headrace.deploy.fleet import Fleet, replica_id
from headrace.deploy.rebalance import Move
from headrace.deploy.reconcile import STARTING, Death, Memory, Plan, Standing, Target, Want, reconcile, target_of
from headrace.deploy.store import Desired

log = logging.getLogger("headrace.deploy")
TICK_S = 1.0
STARTS_MAX = 2 * (os.cpu_count() or 1)
"""Replicas that start at the same time: more would only slow each other, and those that serve, down."""
PULLING_MAX = 8 * STARTS_MAX
"""Replicas that wait for their artifact at the same time: no processes yet, so they hold up nobody who can start."""
PACKING = Packing()
START_SEEN_S = 5.0
"""A replica that was asked for and has not shown by then was never started: it is asked for anew."""


class Manager:
    """The loop.

    Args:
        folder: where replicas' sockets go.
        control: the control plane's socket, to which replicas report.
        drain_s: how long a replica may finish what it has.
        placing: which devices they go to.
        guard: raises in a transaction where another control plane leads by now.
        packing: how versions share processes.
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
        placing: Placing,
        guard: Guard = lambda _: None,
        packing: Packing = PACKING,
    ) -> None:
        self.standings: dict[Target, Standing] = {}
        self._store = store
        self._fleet = fleet
        self._publisher = publisher
        self._artifacts = artifacts
        self._folder = folder
        self._control = control
        self._drain_s = drain_s
        self._placing = placing
        self._guard = guard
        self._memory: dict[Target, Memory] = {}
        self._attention = Attention()
        self.packs = Packs(packing, fleet, publisher, self._served, self._start, folder, control, drain_s)
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
        packs = [status for status in statuses if status.spec.pack is not None]
        statuses = tuple(status for status in statuses if status.spec.pack is None)
        self._attention.also(move.model for move in self._placing.moves.values())
        scope = self._attention.scope(state, statuses, self.packs.observe(state, packs))
        wants = self._placing.wants(scope.models.values(), statuses, self._memory, self.packs.want)
        memory = {target: self._memory[target] for target in scope.targets if target in self._memory}
        holding = self._fleet.holding
        memory = deepcopy(memory) if holding else memory
        plan = reconcile(wants, scope.statuses, self._publisher.draining, memory, now)
        for model in scope.models.values():
            for d in model.deployments:
                target = model.id, d.version
                plan.standings[target] = self.packs.standing(model.id, d, plan.standings[target])
        if holding:
            return self._hold(holding, plan)
        for target in scope.targets:
            self._memory.pop(target, None)
            self.standings.pop(target, None)
        self._memory |= memory
        self.standings |= plan.standings
        await self._act(scope.models.values(), plan, wants)
        ready = {target_of(s) for s in statuses if s.state == "ready" and s.spec.id not in self._publisher.draining}
        deaths = await self.packs.act(packs, ready, now)
        if deaths:
            await self._store.run(lambda c: write_down(c, deaths))
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

    async def _act(self, models: Iterable[ModelState], plan: Plan, wants: Sequence[Want]) -> None:
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
        if plan.start:
            await self._start_placed({model.id: model for model in models}, plan, wants)

    async def _start_placed(self, models: dict[str, ModelState], plan: Plan, wants: Sequence[Want]) -> None:
        """Place and start replicas. Those that are too many, or find no room, are restless: they are tried again."""
        statuses = self._fleet.statuses()
        starting = sum(status.state in STARTING for status in statuses)
        pulling = sum(status.state == "pulling" for status in statuses)
        slots = min(STARTS_MAX - starting, PULLING_MAX - pulling)
        if slots <= 0:
            return
        if moves := self._placing.beginning(plan.start):  # before it is done: then the budget counts it for sure
            await self._store.run(lambda c: self._write_moves(c, moves))
            self._placing.begun |= {move.replica for move in moves}
        look = self._placing.look(statuses, placing.old_replicas(wants, statuses)) if self._placing.devices() else None
        for target in plan.start:
            desired = next(d for d in models[target[0]].deployments if d.version == target[1])
            spec = self._spec(models[target[0]], desired, target)
            if look is not None:
                choice = self._placing.choose(look, desired, target, spec)
                if choice.device is None:
                    self._no_room(plan, target, choice.reason)
                    continue
                log.info("%s goes to %s", spec.id, choice.reason)
                spec = self._placing.placed(spec, choice, desired, target)
            await self._start(spec)
            slots -= 1
            if not slots:
                return

    async def _start(self, spec: ReplicaSpec) -> None:
        self._starting[spec.id] = asyncio.get_running_loop().time() + START_SEEN_S
        await self._fleet.start(spec)

    def _no_room(self, plan: Plan, target: Target, reason: str) -> None:
        """Say why a replica waits; what is said keeps its deployment restless."""
        standing = plan.standings[target]
        if reason not in standing.detail:
            told = reason if standing.state == "requested" else "; ".join(filter(None, (standing.detail, reason)))
            plan.standings[target] = self.standings[target] = replace(standing, detail=told)

    def _write_moves(self, connection: Connection, moves: Sequence[Move]) -> None:
        self._guard(connection)
        placing.write_down(connection, moves)

    def _spec(self, model: ModelState, desired: Desired, target: Target) -> ReplicaSpec:
        id_ = replica_id(*target)
        served = self._served(model, desired.version)
        address = f"unix:{os.path.join(self._folder, id_[-17:])}"
        return ReplicaSpec(
            id_,
            address,
            (served,),
            desired.threads,
            self._control,
            self._drain_s,
            desired.replica_memory_mb,
            compute=desired.compute,
        )

    def _served(self, model: ModelState, version: int) -> ServedVersion:
        row = model.versions[version]
        return ServedVersion(
            0,
            model.id,
            row.version,
            row.engine,
            str(self._artifacts.path(row.digest) or ""),
            row.digest,
            row.signature,
            row.options,
            row.size_bytes,
            composing.served(model.parts.get(row.version, ()), self._artifacts.path),
        )


def write_down(connection: Connection, deaths: Iterable[Death]) -> None:
    """Each death in the audit, once, however often it is seen."""
    for death in deaths:
        tenant, _, model = death.target[0].partition("/")
        entity = f"{model}@{death.target[1]}" if model else f"shared-{death.target[1]}"
        after = {"replica": death.replica, "detail": death.detail}
        record = changes.Record("replica.died", tenant, entity, None, after)
        if not changes.known(connection, record):
            changes.append(connection, changes.PLATFORM, record, None)
