"""The store's rows as the API's resources."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import msgspec
from sqlalchemy import Connection

from headrace.controlplane import accounts, composing
from headrace.controlplane.accounts import TenantRow
from headrace.core import resources
from headrace.core.devices import Device
from headrace.core.specs import ReplicaStatus
from headrace.deploy import store as deploy_store
from headrace.deploy.reconcile import Standing, Target, target_of
from headrace.deploy.starts import StartTimes
from headrace.deploy.store import Desired
from headrace.registry import lifecycle, lineage, references, search
from headrace.registry import parts as parts_store
from headrace.registry import store as registry
from headrace.registry.lifecycle import Life
from headrace.registry.store import ModelRow, VersionRow
from headrace.traffic import store as traffic
from headrace.traffic.allocate import weights_of
from headrace.traffic.store import Policy


def shown(weights: dict[int, float]) -> dict[str, float]:
    """Weights as the API has them."""
    return {str(version): round(percent, 4) for version, percent in sorted(weights.items())}


def tag(resource: msgspec.Struct) -> str:
    """The ETag of a resource, without its quotes: it moves with every change of what is shown. A deployment's moves
    with what is desired only: what its replicas do at the moment is nothing that a caller could have meant to keep."""
    if isinstance(resource, resources.Traffic):
        return str(resource.epoch)
    if isinstance(resource, resources.Deployment):
        desired: tuple[object, ...] = (
            resource.tenant,
            resource.model,
            resource.version,
            resource.replicas,
            resource.threads,
        )
        desired += (resource.memory_mb,) if resource.memory_mb is not None else ()
        desired += (resource.mode,) if resource.mode != "dedicated" else ()
        terms = (tuple(resource.tiers), resource.spot, resource.compute)
        desired += (terms,) if terms != ((), False, None) else ()
        return hashlib.sha256(msgspec.json.encode((*desired, resource.created_at))).hexdigest()[:16]
    return hashlib.sha256(msgspec.json.encode(resource)).hexdigest()[:16]


def model(
    row: ModelRow,
    tenant: TenantRow,
    names: dict[int, str],
    grants: list[int],
    latest: int | None,
    policy: Policy,
    aliases: dict[str, int],
) -> resources.Model:
    """A model, of what was read for many."""
    return resources.Model(
        row.name,
        tenant.name,
        row.description,
        row.tags,
        [names[index] for index in grants],
        row.idempotent,
        row.timeout_s,
        row.body_max_bytes,
        latest,
        shown(weights_of(policy.split)),
        aliases,
        row.created_at,
    )


def one_model(c: Connection, tenant: TenantRow, row: ModelRow) -> resources.Model:
    """A model, read by itself."""
    granted = registry.list_grants(c, [row.id]).get(row.id, [])
    names = {index: found.name for index, found in accounts.find_tenants(c, granted).items()}
    aliases = lifecycle.list_aliases(c, [row.id]).get(row.id, {})
    latest, policy = registry.latest_version(c, row.id), traffic.current(c, row.id)
    return model(row, tenant, names, granted, latest, policy, aliases)


def models(c: Connection, tenants: list[TenantRow], q: str | None = None) -> list[resources.Model]:
    """All models of some tenants where all terms of `q` are found, by tenant and name."""
    hits = None if q is None else search.find(c, q)
    by_index = {tenant.index: tenant for tenant in tenants}
    names = {tenant.index: tenant.name for tenant in accounts.list_tenants(c)}
    grants, latest, policies = registry.list_grants(c), registry.latest_versions(c), traffic.list_current(c)
    aliases = lifecycle.list_aliases(c)
    found = [
        model(
            row,
            by_index[row.tenant],
            names,
            grants.get(row.id, []),
            latest.get(row.id),
            policies[row.id][0] if row.id in policies else traffic.NONE,
            aliases.get(row.id, {}),
        )
        for row in registry.list_models(c)
        if row.tenant in by_index and (hits is None or row.id in hits)
    ]
    return sorted(found, key=lambda m: (m.tenant, m.name))


def versions(c: Connection, tenant: TenantRow, model: ModelRow, rows: list[VersionRow]) -> list[resources.Version]:
    """Versions of a tenant's model, each with what was decided of it, what it runs and what runs it."""
    return versions_of(c, {model.id: (tenant, model)}, rows)


def versions_of(
    c: Connection, owners: Mapping[int, tuple[TenantRow, ModelRow]], rows: list[VersionRow]
) -> list[resources.Version]:
    """Versions of some models (at most `KEYS_MAX`), in the order of `rows`; `owners` has each model by its number."""
    lives, origins = lifecycle.list_of(c, owners), lineage.list_of(c, owners)
    aliases = lifecycle.list_aliases(c, owners)
    parents = {origin.parent[0] for origin in origins.values() if origin.parent}
    names = {id_: found.name for id_, found in registry.find_models(c, parents).items()}
    parts = parts_store.of(c, [(row.model, row.version) for row in rows if row.engine == "pipeline"])
    samples = references.list_of(c, owners)
    users = composing.used_by(c, [model for _, model in owners.values()])
    return [
        version(
            row,
            owners[row.model][1].name,
            owners[row.model][0].name,
            lives[key],
            [alias for alias, at in aliases.get(row.model, {}).items() if at == row.version],
            _lineage(origins.get(key, lineage.NONE), names),
            [part.reference for part in parts.get(key, ())],
            users.get(key, []),
            _reference(samples.get(key)),
        )
        for row in rows
        for key in [(row.model, row.version)]
    ]


def _reference(about: references.About | None) -> resources.ReferenceSummary | None:
    if about is None:
        return None
    return resources.ReferenceSummary(about.sample, about.rows, about.features, about.created_at)


def _lineage(origin: lineage.Origin, names: dict[int, str]) -> resources.Lineage:
    parent = None if origin.parent is None else f"{names[origin.parent[0]]}@{origin.parent[1]}"
    return resources.Lineage(origin.training_set, origin.code, parent, origin.features, origin.metadata)


def version(
    row: VersionRow,
    name: str,
    tenant: str,
    life: Life,
    aliases: list[str],
    origin: resources.Lineage,
    parts: list[str],
    used_by: list[str],
    reference: resources.ReferenceSummary | None,
) -> resources.Version:
    """A version, of what was read for many."""
    return resources.Version(
        name,
        tenant,
        row.version,
        row.engine,
        row.digest,
        row.size_bytes,
        row.file_name,
        row.signature,
        row.options,
        row.metrics,
        row.tags,
        row.description,
        origin,
        life.state,
        aliases,
        list(life.tests),
        row.created_at,
        row.created_by,
        parts,
        used_by,
        reference,
    )


def policy(c: Connection, row: ModelRow, tenant: str) -> resources.Traffic:
    """A model's traffic policy."""
    pinned = traffic.list_overrides(c, [row.id]).get(row.id, {})
    names = {index: found.name for index, found in accounts.find_tenants(c, pinned.keys()).items()}
    return _policy(row, tenant, traffic.current(c, row.id), traffic.previous(c, row.id), pinned, names)


def policies(c: Connection, tenants: list[TenantRow]) -> list[resources.Traffic]:
    """The traffic policies of all models of some tenants."""
    by_index = {tenant.index: tenant.name for tenant in tenants}
    names = {tenant.index: tenant.name for tenant in accounts.list_tenants(c)}
    current, pinned = traffic.list_current(c), traffic.list_overrides(c)
    return [
        _policy(row, by_index[row.tenant], *current.get(row.id, (traffic.NONE, None)), pinned.get(row.id, {}), names)
        for row in registry.list_models(c)
        if row.tenant in by_index
    ]


def _policy(
    row: ModelRow, tenant: str, current: Policy, back: Policy | None, pinned: dict[int, int], names: dict[int, str]
) -> resources.Traffic:
    return resources.Traffic(
        row.name,
        tenant,
        current.epoch,
        shown(weights_of(current.split)),
        {names[index]: version for index, version in pinned.items()},
        shown(weights_of(back.split)) if back is not None else None,
    )


def deployments(
    c: Connection,
    tenants: list[TenantRow],
    statuses: tuple[ReplicaStatus, ...],
    standings: dict[Target, Standing],
    residents: Collection[Target],
    starts: StartTimes,
) -> list[resources.Deployment]:
    """All deployments of some tenants, by tenant, model and version."""
    by_index = {tenant.index: tenant for tenant in tenants}
    rows = {row.id: row for row in registry.list_models(c) if row.tenant in by_index}
    policies = traffic.list_current(c)
    replicas = replicas_of(statuses)
    found = [
        deployment(
            desired,
            by_index[rows[desired.model].tenant].name,
            rows[desired.model].name,
            policies.get(desired.model, (traffic.NONE, None))[0],
            replicas,
            standings,
            residents,
            starts,
        )
        for desired in deploy_store.list_all(c)
        if desired.model in rows
    ]
    return sorted(found, key=lambda d: (d.tenant, d.model, d.version))


def replicas_of(statuses: tuple[ReplicaStatus, ...]) -> dict[Target, list[ReplicaStatus]]:
    """The replicas of each deployment."""
    by_target: dict[Target, list[ReplicaStatus]] = {}
    for status in statuses:
        by_target.setdefault(target_of(status), []).append(status)
    return by_target


def deployment(
    desired: Desired,
    tenant: str,
    name: str,
    policy: Policy,
    replicas: dict[Target, list[ReplicaStatus]],
    standings: dict[Target, Standing],
    residents: Collection[Target],
    starts: StartTimes,
) -> resources.Deployment:
    """A deployment."""
    target = (f"{tenant}/{name}", desired.version)
    standing = standings.get(target, Standing("requested", 0, ""))
    if standing.state == "failed" and standing.revision != desired.revision:
        standing = Standing("requested", standing.ready, "changed since it failed")
    return resources.Deployment(
        name,
        tenant,
        desired.version,
        standing.state,
        desired.replicas,
        standing.ready,
        desired.threads,
        standing.detail,
        [
            resources.Replica(s.spec.id, s.state, s.pid, s.detail, s.timings_s, s.origin, s.spec.device)
            for s in replicas.get(target, [])
        ],
        weights_of(policy.split).get(desired.version, 0.0),
        desired.created_at,
        desired.memory_mb,
        desired.waiting_share(policy.epoch > 0),
        starts.p95_s(target),
        desired.mode,
        desired.placed,
        desired.placed_why,
        target in residents if desired.placed == "shared" else None,
        list(desired.terms.tiers),
        desired.spot,
        desired.compute,
    )


def device(one: Device) -> resources.FleetDevice:
    """A device of the fleet."""
    return resources.FleetDevice(one.id, one.tier, one.memory_mb, one.compute, one.spot)
