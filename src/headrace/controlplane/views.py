"""The store's rows as the API's resources."""

from __future__ import annotations

from sqlalchemy import Connection

from headrace.controlplane import accounts
from headrace.controlplane.accounts import TenantRow
from headrace.controlplane.platform import shown
from headrace.core import resources
from headrace.core.specs import ReplicaStatus
from headrace.deploy import store as deploy_store
from headrace.deploy.reconcile import Standing, Target, target_of
from headrace.registry import store as registry
from headrace.registry.store import ModelRow, VersionRow
from headrace.traffic import store as traffic
from headrace.traffic.allocate import weights_of
from headrace.traffic.store import Policy


def model(
    row: ModelRow, tenant: TenantRow, names: dict[int, str], grants: list[int], latest: int | None, policy: Policy
) -> resources.Model:
    """A model."""
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
        row.created_at,
    )


def models(c: Connection, tenants: list[TenantRow]) -> list[resources.Model]:
    """All models of some tenants, by tenant and name."""
    by_index = {tenant.index: tenant for tenant in tenants}
    names = {tenant.index: tenant.name for tenant in accounts.list_tenants(c)}
    grants, latest, policies = registry.list_grants(c), registry.latest_versions(c), traffic.list_current(c)
    found = [
        model(
            row,
            by_index[row.tenant],
            names,
            grants.get(row.id, []),
            latest.get(row.id),
            policies[row.id][0] if row.id in policies else traffic.NONE,
        )
        for row in registry.list_models(c)
        if row.tenant in by_index
    ]
    return sorted(found, key=lambda m: (m.tenant, m.name))


def version(row: VersionRow, name: str, tenant: str) -> resources.Version:
    """A version."""
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
        row.created_at,
        row.created_by,
    )


def policy(c: Connection, row: ModelRow, tenant: str) -> resources.Traffic:
    """A model's traffic policy."""
    current, back = traffic.current(c, row.id), traffic.previous(c, row.id)
    names = {t.index: t.name for t in accounts.list_tenants(c)}
    pinned = traffic.list_overrides(c).get(row.id, {})
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
) -> list[resources.Deployment]:
    """All deployments of some tenants."""
    names = {tenant.index: tenant.name for tenant in tenants}
    rows = {row.id: row for row in registry.list_models(c) if row.tenant in names}
    policies = traffic.list_current(c)
    by_target: dict[Target, list[ReplicaStatus]] = {}
    for status in statuses:
        by_target.setdefault(target_of(status), []).append(status)
    found = []
    for desired in deploy_store.list_all(c):
        row = rows.get(desired.model)
        if row is None:
            continue
        target = (f"{names[row.tenant]}/{row.name}", desired.version)
        standing = standings.get(target, Standing("requested", 0, ""))
        weights = weights_of(policies[row.id][0].split) if row.id in policies else {}
        found.append(
            resources.Deployment(
                row.name,
                names[row.tenant],
                desired.version,
                standing.state,
                desired.replicas,
                standing.ready,
                desired.threads,
                standing.detail,
                [
                    resources.Replica(s.spec.id, s.state, s.pid, s.detail, s.timings_s)
                    for s in by_target.get(target, [])
                ],
                weights.get(desired.version, 0.0),
                desired.created_at,
            )
        )
    return found
