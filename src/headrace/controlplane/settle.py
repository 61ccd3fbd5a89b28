"""What follows from the state of the deployments: a version that is ready gets the traffic that waited for it, and one
that no policy needs any more is stopped. Written to the store as changes by the platform itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from headrace.controlplane import changes
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import shown
from headrace.controlplane.routing_state import Reader, RoutingState
from headrace.core.snapshot import Slots
from headrace.deploy import store as deploy_store
from headrace.deploy.reconcile import Standing, Target, retire
from headrace.deploy.store import Desired
from headrace.traffic import store as traffic_store
from headrace.traffic.allocate import allocate, weights_of, with_share

PLATFORM = "platform"
"""The actor of these changes."""


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be written; all empty at rest."""

    shares: list[tuple[Desired, float]]
    """Deployments that are ready and the percent that waited for it."""
    retired: list[Desired]

    def __bool__(self) -> bool:
        return bool(self.shares or self.retired)


def due(state: RoutingState, standings: Mapping[Target, Standing]) -> Due:
    """Decide. Pure, so that it can be asked of a state read before and then again within the transaction."""
    shares = []
    for one in state.desired:
        standing = standings.get((state.id_of(one.model), one.version))
        share = _share(one, one.model in state.policies)
        if share is not None and standing is not None and standing.state == "ready" and standing.ready > 0:
            shares.append((one, share))
    # One that waits for a share is wanted, whatever it had before.
    settled = {(state.id_of(d.model), d.version): d for d in state.desired if d.had_traffic and not _waits(d)}
    gone = retire(
        settled.keys(),
        {state.id_of(m): weights_of(now.split) for m, (now, _) in state.policies.items()},
        {state.id_of(m): weights_of(back.split) for m, (_, back) in state.policies.items() if back is not None},
        {state.id_of(m): set(pins.values()) for m, pins in state.overrides.items()},
    )
    return Due(shares, [settled[target] for target in gone])


def _waits(one: Desired) -> bool:
    return one.traffic_on_ready is not None


def _share(one: Desired, routed: bool) -> float | None:
    """What a ready deployment gets: what was asked, or for the first of its model everything."""
    if one.traffic_on_ready == 0 and not routed:
        return None  # a policy must give somebody something: it waits for one that others have
    if one.traffic_on_ready is None and not routed and not one.had_traffic:
        return 100.0
    return one.traffic_on_ready


def settle(connection: Connection, reader: Reader, standings: Mapping[Target, Standing]) -> bool:
    """Write what is due, decided anew in this transaction. True when anything changed."""
    state = reader(connection)
    decided = due(state, standings)
    for one, share in decided.shares:
        give_share(connection, state.id_of(one.model), one, share)
    for one in decided.retired:
        tenant, _, name = state.id_of(one.model).partition("/")
        entity = f"{name}@{one.version}"
        deploy_store.remove(connection, one.model, one.version)
        before = {"replicas": one.replicas, "threads": one.threads}
        record = Record("deployment.retire", tenant, entity, before, None, f"headrace deploy {entity}")
        changes.append(connection, PLATFORM, record, "out of the policy in force and of the one before")
    return bool(decided)


def give_share(connection: Connection, model: str, one: Desired, share: float) -> None:
    """Put a policy in force that gives a version its share. One that it has already makes no new policy: a rollback
    would then go back to the same."""
    deploy_store.traffic_done(connection, one.model, one.version)
    old = traffic_store.current(connection, one.model).split
    before = weights_of(old)
    split: tuple[Slots, ...] = allocate(old, with_share(before, one.version, share))
    if split == old:
        return
    traffic_store.append(connection, one.model, split)
    deploy_store.mark_traffic(connection, one.model, set(weights_of(split)))
    tenant, _, name = model.partition("/")
    record = Record(
        "traffic.set",
        tenant,
        name,
        {"weights": shown(before)} if before else None,
        {"weights": shown(weights_of(split))},
        f"headrace rollback {name}" if before else None,
    )
    changes.append(connection, PLATFORM, record, f"{name}@{one.version} is ready")
