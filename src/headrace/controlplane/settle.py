"""What follows from the state of the deployments: a version that is ready gets the traffic that waited for it, and one
that no policy needs any more is stopped. Written to the store as changes by the platform itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from headrace.controlplane import changes
from headrace.controlplane.changes import Record
from headrace.controlplane.routing_state import ModelState, RoutingState, read
from headrace.controlplane.views import shown
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

    shares: list[tuple[ModelState, Desired, float]]
    """Deployments that are ready and the percent that waited for it."""
    retired: list[tuple[ModelState, Desired]]

    def __bool__(self) -> bool:
        return bool(self.shares or self.retired)


def due(models: Iterable[ModelState], standings: Mapping[Target, Standing]) -> Due:
    """Decide for these models. Pure, so that it can be asked of a state read before and then again within the
    transaction."""
    found = Due([], [])
    for model in models:
        for one in model.deployments:
            standing = standings.get((model.id, one.version))
            share = _share(one, model.policy.epoch > 0)
            if share is not None and standing is not None and standing.state == "ready" and standing.ready > 0:
                found.shares.append((model, one, share))
        # One that waits for a share is wanted, whatever it had before.
        settled = {(model.id, d.version): d for d in model.deployments if d.had_traffic and not _waits(d)}
        back = weights_of(model.back.split) if model.back is not None else {}
        pinned = set(model.pins.values())
        gone = retire(settled, {model.id: weights_of(model.policy.split)}, {model.id: back}, {model.id: pinned})
        found.retired.extend((model, settled[target]) for target in gone)
    return found


def _waits(one: Desired) -> bool:
    return one.traffic_on_ready is not None


def _share(one: Desired, routed: bool) -> float | None:
    """What a ready deployment gets."""
    if one.traffic_on_ready == 0 and not routed:
        return None  # a policy must give somebody something: it waits for one that others have
    return one.waiting_share(routed)


def settle(
    connection: Connection, before: RoutingState, models: Collection[int], standings: Mapping[Target, Standing]
) -> bool:
    """Write what is due of these models, decided anew in this transaction. True when anything changed.

    Args:
        connection: in the transaction.
        before: the state as last read; what has changed since is read here.
        models: numbers of the models to decide for.
        standings: of their deployments.
    """
    state = read(connection, before)
    decided = due([state.models[model] for model in models], standings)
    for model, one, share in decided.shares:
        give_share(connection, model.id, one, share)
    for model, one in decided.retired:
        tenant, _, name = model.id.partition("/")
        entity = f"{name}@{one.version}"
        deploy_store.remove(connection, one.model, one.version)
        was = {"replicas": one.replicas, "threads": one.threads}
        record = Record("deployment.retire", tenant, entity, was, None, f"headrace deploy {entity}")
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
