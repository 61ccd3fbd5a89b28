"""Use cases: traffic is split, rolled back and pinned."""

from __future__ import annotations

from sqlalchemy import Connection

from headrace.controlplane import accounts, views
from headrace.controlplane.accounts import TenantRow
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import Platform, Request
from headrace.controlplane.versioning import may_serve
from headrace.controlplane.views import shown
from headrace.core.errors import Conflict, InvalidInput, NotFound
from headrace.core.names import VersionName, read_version
from headrace.core.resources import Outcome, Traffic, TrafficUpdate
from headrace.deploy import store as deploy_store
from headrace.registry.store import ModelRow
from headrace.traffic import store as traffic
from headrace.traffic.allocate import allocate, weights_of


async def set_weights(platform: Platform, request: Request, name: str, body: TrafficUpdate) -> Outcome[Traffic]:
    """Put a split in force. Raises InvalidInput, Conflict, PreconditionFailed."""
    request.principal.need("operator")
    named = {read_version(text, "weights"): percent for text, percent in body.weights.items()}

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        before = traffic.current(c, model.id)
        request.match(str(before.epoch))
        weights = {platform.number(c, model, wanted): percent for wanted, percent in named.items()}
        if len(weights) < len(body.weights):
            raise InvalidInput("weights: a version is named twice", field="weights")
        split, shares = allocate(before.split, weights), weights_of(before.split)
        for version, percent in weights.items():
            if percent > 0:
                must_be_ready(platform, c, tenant, model, version)
            if percent > shares.get(version, 0.0):  # what it has already it may keep
                may_serve(c, tenant, model, version, "weights")
        traffic.append(c, model.id, split)
        deploy_store.mark_traffic(c, model.id, set(weights_of(split)))
        return Record(
            "traffic.set",
            tenant.name,
            name,
            {"weights": shown(weights_of(before.split))},
            {"weights": shown(weights_of(split))},
            f"headrace rollback {name}",
        )

    return await platform.mutate(request, work, lambda c, _: show_traffic(platform, c, request, name), Traffic)


async def rollback(platform: Platform, request: Request, name: str) -> Outcome[Traffic]:
    """Put back what the split in force replaced (`traffic.previous`). Raises Conflict when there is none."""
    request.principal.need("operator")

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        before = traffic.current(c, model.id)
        back = traffic.previous(c, model.id)
        if back is None:
            raise Conflict(f"model {name!r}: there is no earlier traffic policy to go back to", field="model")
        for version in weights_of(back.split):
            must_be_ready(platform, c, tenant, model, version)
        traffic.roll_back(c, model.id)
        deploy_store.mark_traffic(c, model.id, set(weights_of(back.split)))
        return Record(
            "traffic.rollback",
            tenant.name,
            name,
            {"weights": shown(weights_of(before.split))},
            {"weights": shown(weights_of(back.split))},
            f"headrace rollback {name}",
        )

    return await platform.mutate(request, work, lambda c, _: show_traffic(platform, c, request, name), Traffic)


async def pin(
    platform: Platform, request: Request, name: str, pinned: str, wanted: VersionName | None
) -> Outcome[Traffic]:
    """Pin a tenant to a version, or with None let it go."""
    request.principal.need("operator")
    action = "traffic.pin" if wanted is not None else "traffic.unpin"

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        who = accounts.named_tenant(c, pinned)
        version = None if wanted is None else platform.number(c, model, wanted)
        if version is not None:
            must_be_ready(platform, c, tenant, model, version)
            may_serve(c, tenant, model, version, "version")
        before = traffic.set_override(c, model.id, who.index, version)
        if version is None and before is None:
            raise NotFound(f"tenant {pinned!r} is not pinned", field="tenant")
        if version is not None:
            deploy_store.mark_traffic(c, model.id, {version})
        undo = f"headrace traffic pin {name} {pinned} {before}" if before else None
        undo = undo or f"headrace traffic unpin {name} {pinned}"
        return Record(
            action,
            tenant.name,
            name,
            {"tenant": pinned, "version": before},
            {"tenant": pinned, "version": version},
            undo,
        )

    return await platform.mutate(request, work, lambda c, _: show_traffic(platform, c, request, name), Traffic)


def must_be_ready(platform: Platform, c: Connection, tenant: TenantRow, model: ModelRow, version: int) -> None:
    """Raises NotFound or Conflict unless a replica of the version is ready."""
    platform.version(c, model, version)
    entity = f"{model.name}@{version}"
    standing = platform.standings().get((f"{tenant.name}/{model.name}", version))
    if standing is None:
        raise Conflict(f"{entity} is not deployed", field="weights", hint=f"headrace deploy {entity}")
    if standing.ready < 1:
        raise Conflict(f"{entity} is not ready: {standing.state}, {standing.detail}", field="weights")


def show_traffic(platform: Platform, c: Connection, request: Request, name: str) -> Traffic:
    """A model's traffic policy as the API shows it. Raises NotFound."""
    tenant, model = platform.model(c, request, name)
    return views.policy(c, model, tenant.name)
