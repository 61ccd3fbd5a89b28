"""The shared processes and their catalogs: the world is read in, `deploy.packs`'s decisions are carried out."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from headrace.controlplane.publisher import Publisher
from headrace.controlplane.routing_state import NOTHING, ModelState, RoutingState
from headrace.core.specs import (
    CatalogEntry,
    CatalogItem,
    CatalogOrder,
    Packing,
    PackSpec,
    ReplicaSpec,
    ReplicaStatus,
    ServedVersion,
)
from headrace.deploy import packs
from headrace.deploy.fleet import Fleet, replica_id
from headrace.deploy.reconcile import Death, Memory, Standing, Target, Want, reconcile
from headrace.deploy.store import Desired

Served = Callable[[ModelState, int], ServedVersion]
"""A version as replicas get it."""
ADD_MAX = 200
"""Items that go to a pack at once; the rest follow at the next look."""


class Packs:
    """All of them.

    Args:
        limits: how many, and how large.
        fleet: runs them.
        publisher: told what leaves them, before it does.
        served: makes versions as replicas get them.
        start: starts a process, and sees to it that it is not asked for twice.
        folder: where their sockets go.
        control: the control plane's socket.
        drain_s: how long they may finish what they have.
    """

    def __init__(
        self,
        limits: Packing,
        fleet: Fleet,
        publisher: Publisher,
        served: Served,
        start: Callable[[ReplicaSpec], Awaitable[None]],
        folder: str,
        control: str,
        drain_s: float,
    ) -> None:
        self.faults: dict[Target, int] = {}
        """Ends of shared processes that are a version's fault."""
        self.deployments: dict[Target, tuple[int, Desired]] = {}
        """Every deployment, with its model's number."""
        self._limits = limits
        self._fleet = fleet
        self._publisher = publisher
        self._served = served
        self._start = start
        self._folder = folder
        self._control = control
        self._drain_s = drain_s
        self._state = NOTHING
        self._memory: dict[Target, Memory] = {}
        self._measured: dict[Target, int] = {}
        """Bytes in memory of versions that a pack has shown it can serve."""
        self._entries: dict[Target, list[CatalogEntry]] = {}
        self._catalogs: dict[str, tuple[CatalogEntry, ...]] = {}

    # ------------------------------------------------------------------------------------------------ observe
    def observe(self, state: RoutingState, statuses: Sequence[ReplicaStatus]) -> set[str]:
        """Look at the world; names of the models of which anything has changed."""
        moved = set()
        for id_ in state.changed_since(self._state.revision)["model"]:
            model, before = state.models[int(id_)], self._state.models.get(int(id_))
            for one in before.deployments if before is not None else ():
                del self.deployments[model.id, one.version]
                if one not in model.deployments:  # what was measured under other limits is measured again
                    self._measured.pop((model.id, one.version), None)
            self.deployments |= {(model.id, one.version): (int(id_), one) for one in model.deployments}
        self._state = state
        ready = {status.spec.id: status.catalog for status in statuses if status.state == "ready"}
        if ready != self._catalogs:
            entries: dict[Target, list[CatalogEntry]] = {}
            for catalog in ready.values():
                for entry in catalog:
                    entries.setdefault((entry.model, entry.version), []).append(entry)
                    self._learn(entry)
            changed = entries.keys() | self._entries.keys()
            moved = {target[0] for target in changed if entries.get(target) != self._entries.get(target)}
            self._entries, self._catalogs = entries, ready
        return moved

    def _learn(self, entry: CatalogEntry) -> None:
        target = entry.model, entry.version
        _, one = self.deployments.get(target, (0, None))
        if one is not None and one.revision == entry.revision and entry.state == "ready" and entry.bytes:
            self._measured[target] = entry.bytes

    def want(self, model: str, desired: Desired, live: int) -> int:
        """How many replicas of its own a deployment shall have, that has `live` of them: those stay until a pack serves
        it."""
        if desired.placed != "shared":
            return desired.replicas
        entries = self._entries.get((model, desired.version), ())
        there = any(entry.state == "ready" for entry in entries)
        return 0 if there or not desired.replicas else live

    def standing(self, model: str, desired: Desired, dedicated: Standing) -> Standing:
        """A deployment's, where packs have a part in it; `dedicated` is what its own replicas make of it."""
        entries = self._entries.get((model, desired.version), [])
        if desired.placed == "shared" and desired.replicas:
            return packs.standing(desired.revision, entries, dedicated)
        if not dedicated.ready and dedicated.state != "failed" and any(e.state == "ready" for e in entries):
            return Standing("ready", 1, f"leaves the shared processes: {dedicated.detail}")
        return dedicated

    # ------------------------------------------------------------------------------------------------ act
    async def act(self, statuses: Sequence[ReplicaStatus], dedicated: Collection[Target], now: float) -> list[Death]:
        """Start and stop packs, and change their catalogs. `dedicated`: versions that replicas of their own serve.
        Returns the packs that have ended by themselves."""
        shared = {t: d.revision for t, (_, d) in self.deployments.items() if d.placed == "shared" and d.replicas}
        # What is to have replicas of its own stays until it does.
        kept = {t for t in self._entries if t not in dedicated and t in self.deployments and t not in shared}
        kept = {target for target in kept if self.deployments[target][1].replicas}
        count = self._limits.shared_replicas if shared or kept else 0
        wants = [Want(("", k), int(k < count), 1) for k in range(self._limits.shared_replicas)]
        plan = reconcile(wants, statuses, self._publisher.draining, self._memory, now)
        if plan.stop:
            self._publisher.draining |= set(plan.stop)
            await self._publisher.publish()
        for death in plan.deaths:
            self._blame(next(status for status in statuses if status.spec.id == death.replica))
        for pack in plan.stop:
            await self._fleet.stop(pack)
        for pack in plan.forget:
            await self._fleet.forget(pack)
        for _, number in plan.start:
            await self._start(self._spec(number))
        ready = [s for s in statuses if s.state == "ready" and s.spec.id not in self._publisher.draining]
        await self._change(packs.plan(shared, kept, ready, self._limits.shared_replicas), shared, statuses)
        return plan.deaths

    async def _change(
        self, orders: Mapping[str, packs.Orders], shared: Mapping[Target, int], statuses: Sequence[ReplicaStatus]
    ) -> None:
        here = {(status.spec.id, entry.key) for status in statuses for entry in status.catalog}
        leaving = {(pack, entry.key) for pack, order in orders.items() for entry in order.remove}
        self._publisher.leaving = (self._publisher.leaving & here) | leaving
        if leaving:
            await self._publisher.publish()  # nothing new comes to it when it leaves
        for pack, order in orders.items():
            add = tuple(self._item(target, shared[target]) for target in order.add[:ADD_MAX])
            await self._fleet.catalog(pack, CatalogOrder(add, tuple(entry.key for entry in order.remove)))

    def _item(self, target: Target, revision: int) -> CatalogItem:
        number, desired = self.deployments[target]
        served = self._served(self._state.models[number], target[1])
        return CatalogItem(served, revision, desired.memory_mb, self._measured.get(target, 0))

    def _spec(self, number: int) -> ReplicaSpec:
        id_ = replica_id("shared", number)
        limits = self._limits
        pack = PackSpec(number, limits.shared_memory_mb, min(limits.shared_model_memory_mb, limits.shared_memory_mb))
        address = f"unix:{os.path.join(self._folder, id_[-17:])}"
        memory_mb = limits.shared_memory_mb
        return ReplicaSpec(id_, address, (), 1, self._control, self._drain_s, memory_mb, pack=pack)

    def _blame(self, status: ReplicaStatus) -> None:
        model, _, version = status.culprit.rpartition("@")
        if model:
            self.blame((model, int(version)), 1)

    def blame(self, target: Target, times: int) -> None:
        """A shared process has ended so often, and it was this version's fault."""
        self.faults[target] = self.faults.get(target, 0) + times
