"""Where the manager's replicas go: the fleet as placement sees it, and the optimiser's moves as they are made.

A move is one more reason to replace a replica, as other threads are: reconciliation starts one more, here it is sent to
the move's target, and when it is ready the old one drains. Moves are kept nowhere: after a restart those that have not
begun are forgotten, and of one that has, the younger replica goes. What is kept is that it began, before it does: in
the audit, from where a model's budget is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
from sqlalchemy import Connection

from headrace.controlplane import changes
from headrace.controlplane.routing_state import ModelState
from headrace.core.database import now
from headrace.core.devices import Device, Tier, tier_of
from headrace.core.resources import DeviceStatus
from headrace.core.specs import ReplicaSpec, ReplicaStatus
from headrace.deploy.demand import Terms, demand_of, largest_mb
from headrace.deploy.fleet import Fleet
from headrace.deploy.placement import Choice, Demand, Packing
from headrace.deploy.rebalance import BUDGET_S, Item, Move, may_begin
from headrace.deploy.reconcile import Memory, Target, Want, outdated, target_of
from headrace.deploy.states import ENDED
from headrace.deploy.store import Desired

MOVED = "replica.move"
"""Action of the audit's rows about moves."""
ROWS_MAX = 100_000
FRACTION_MIN = 0.01
"""Of an accelerator."""


@dataclass
class Look:
    """The fleet at one tick, and what is to be placed on it."""

    packing: Packing
    largest_mb: dict[Target, float]
    moves: dict[Target, Move] = field(default_factory=dict)
    """Those that may begin now, or have."""


class Placing:
    """Places replicas.

    Args:
        fleet: whose devices there are.
        tiers: prices and speeds.
        resident_mb: memory that replicas have reported, by id.
    """

    def __init__(
        self, fleet: Fleet, tiers: Mapping[str, Tier], resident_mb: Callable[[], Mapping[str, float]] = dict
    ) -> None:
        self.tiers = tiers
        self.moves: dict[str, Move] = {}
        """By replica: what the optimiser wants, until it is done or cannot be."""
        self.begun: set[str] = set()
        """Replicas whose move is in the audit."""
        self._fleet = fleet
        self._resident_mb = resident_mb

    def devices(self) -> tuple[Device, ...]:
        """Of the fleet."""
        return self._fleet.devices()

    def running(self, statuses: Iterable[ReplicaStatus]) -> Iterable[tuple[ReplicaStatus, Demand]]:
        """What each replica takes that has not ended, and is on one of the devices."""
        tier = {device.id: device.tier for device in self.devices()}
        resident = self._resident_mb()
        for status in statuses:
            spec = status.spec
            if status.state not in ENDED and spec.device in tier:
                yield status, demand_of(spec, target_of(status), Terms((tier[spec.device],)), resident.get(spec.id))

    def look(self, statuses: Sequence[ReplicaStatus], old: Iterable[str] = ()) -> Look:
        """The fleet as it is.

        Args:
            statuses: of all replicas.
            old: those that are being replaced: they take room, and keep their successors from no device.
        """
        packing, leaving = Packing(self.devices(), self.tiers), set(old)
        for status, demand in self.running(statuses):
            id_ = status.spec.id
            packing.take(status.spec.device, replace(demand, group=id_) if id_ in leaving else demand)
        return Look(packing, largest_mb(statuses, self._resident_mb()))

    def wants(
        self,
        models: Iterable[ModelState],
        statuses: Sequence[ReplicaStatus],
        memory: Mapping[Target, Memory],
        number: Callable[[str, Desired, int], int] = lambda _, desired, __: desired.replicas,
    ) -> list[Want]:
        """The deployments as desired, with the replicas that are on the wrong hardware or are to move now.

        Args:
            number: (model, deployment, its ready replicas) -> how many it shall have of its own.
        """
        self._forget(statuses, memory)
        moving = set(self._movable(statuses))
        devices = {device.id: device for device in self.devices()}
        of: dict[Target, list[ReplicaStatus]] = {}
        for status in statuses:
            of.setdefault(target_of(status), []).append(status)
        found = []
        for model in models:
            for d in model.deployments:
                target = (model.id, d.version)
                own = of.get(target, [])
                replicas = number(model.id, d, sum(s.state == "ready" for s in own))
                if d.placed == "shared":  # those that it still has stay as they are until they go
                    found.append(Want(target, replicas, d.revision, None, d.replica_memory_mb))
                    continue
                ids = {
                    s.spec.id for s in own if s.spec.id in moving or not may_stay(devices.get(s.spec.device), d.terms)
                }
                terms = (d.threads, d.replica_memory_mb, d.compute)
                found.append(Want(target, replicas, d.revision, *terms, frozenset(ids)))
        return found

    def choose(self, look: Look, desired: Desired, target: Target, spec: ReplicaSpec) -> Choice:
        """A device for a replica that is to start, counted to the look. An empty fleet leaves it to the adapter."""
        demand = demand_of(spec, target, desired.terms, look.largest_mb.get(target))
        move = next((m for m in self.moves.values() if m.group == group_of(target) and m.replica in self.begun), None)
        if move is not None and (k := look.packing.index.get(move.target)) is not None and look.packing.room(demand)[k]:
            look.packing.take(move.target, demand)
            return Choice(look.packing.devices[k], f"{move.target}: moved from {move.source}")
        return look.packing.place(demand)

    def placed(self, spec: ReplicaSpec, choice: Choice, desired: Desired, target: Target) -> ReplicaSpec:
        """A replica on its device, with the fraction of it that it takes of an accelerator."""
        device = choice.device
        if device is None:
            return spec
        demand = demand_of(spec, target, desired.terms, None)
        compute = (demand.compute or 0.0) / (device.compute * tier_of(device, self.tiers).speed or 1.0)
        fraction = max(compute, demand.memory_mb / max(device.memory_mb, 1), FRACTION_MIN)
        accelerators = 0.0 if device.id.endswith("/cpu") else min(round(fraction, 2), 1.0)
        return msgspec.structs.replace(spec, device=device.id, accelerators=accelerators)

    def beginning(self, targets: Iterable[Target]) -> list[Move]:
        """Moves of these deployments that are not in the audit yet."""
        groups = {group_of(target) for target in targets}
        return [m for m in self.moves.values() if m.group in groups and m.replica not in self.begun]

    def _forget(self, statuses: Sequence[ReplicaStatus], memory: Mapping[Target, Memory]) -> None:
        """Moves whose replica has gone, or does not serve, or whose successor crashes."""
        steady = {s.spec.id for s in statuses if s.state == "ready" and not crashing(memory.get(target_of(s)))}
        self.moves = {id_: move for id_, move in self.moves.items() if id_ in steady}
        self.begun &= self.moves.keys()

    def _movable(self, statuses: Sequence[ReplicaStatus]) -> Iterable[str]:
        """Replicas that may move now: their target has room, or they have begun."""
        if not self.moves:
            return ()
        items = {s.spec.id: item_of(s, d) for s, d in self.running(statuses) if s.spec.id in self.moves}
        waiting = [m for id_, m in self.moves.items() if id_ not in self.begun and id_ in items]
        return {*self.begun, *(m.replica for m in may_begin(waiting, items, self.look(statuses).packing))}

    def shown(self, statuses: Sequence[ReplicaStatus]) -> list[DeviceStatus]:
        """The devices, and what is on them."""
        packing = self.look(statuses).packing
        return [
            DeviceStatus(
                d.id,
                d.node,
                d.tier,
                d.spot,
                d.memory_mb,
                round(float(packing.memory_used_mb[k]), 1),
                d.compute * tier_of(d, self.tiers).speed,
                round(float(packing.compute_used[k]), 3),
                int(packing.replicas[k]),
                round(float(packing.price_per_h[k]), 6),
            )
            for k, d in enumerate(packing.devices)
        ]


def may_stay(device: Device | None, terms: Terms) -> bool:
    """Whether a replica is on hardware that its deployment wants; one that is on none known stays."""
    return device is None or (device.tier in terms.kinds and (terms.spot or not device.spot))


def crashing(memory: Memory | None) -> bool:
    """Whether a deployment's replicas crash or fail."""
    return memory is not None and (memory.crashes > 0 or bool(memory.failure))


def group_of(target: Target) -> str:
    """``tenant/model@version``."""
    return f"{target[0]}@{target[1]}"


def item_of(status: ReplicaStatus, demand: Demand, desired: Desired | None = None, movable: bool = True) -> Item:
    """A running replica as the optimiser sees it; with `desired`, where else it might be."""
    target = target_of(status)
    terms = desired.terms if desired is not None else Terms(demand.tiers, demand.spot, demand.replicas)
    return Item(
        status.spec.id,
        target[0],
        group_of(target),
        status.spec.device,
        demand.memory_mb,
        demand.compute,
        terms.kinds,
        terms.spot,
        terms.replicas,
        movable,
    )


def old_replicas(wants: Iterable[Want], statuses: Iterable[ReplicaStatus]) -> set[str]:
    """Those that are being replaced."""
    wanted = {want.target: want for want in wants}
    return {s.spec.id for s in statuses if (w := wanted.get(target_of(s))) is not None and outdated(w, s)}


def write_down(connection: Connection, moves: Iterable[Move]) -> None:
    """Moves into the audit, before they begin: from then on they count."""
    for move in moves:
        tenant, _, entity = move.group.partition("/")
        before = {"replica": move.replica, "device": move.source}
        after = {"replica": move.replica, "device": move.target}
        record = changes.Record(MOVED, tenant, entity, before, after)
        if not changes.known(connection, record):
            changes.append(connection, changes.PLATFORM, record, "fewer or cheaper devices")


def moved_lately(connection: Connection) -> set[str]:
    """Models, ``tenant/name``, that have moved within `BUDGET_S`."""
    rows = changes.page(connection, None, None, now(-BUDGET_S), None, ROWS_MAX, "replica")
    return {f"{row.tenant}/{row.entity.rpartition('@')[0]}" for row in rows if row.action == MOVED}
