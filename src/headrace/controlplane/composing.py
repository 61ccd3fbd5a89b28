"""What a pipeline is made of: the registered versions that its declaration names, found, and shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import Connection

from headrace.controlplane import accounts, views
from headrace.controlplane.accounts import TenantRow
from headrace.core.errors import Forbidden, InvalidInput, NotFound
from headrace.core.names import did_you_mean, parse_reference
from headrace.core.pipeline import Pipeline, Step
from headrace.core.resources import Version
from headrace.core.specs import ServedPart
from headrace.registry import parts as parts_store
from headrace.registry import store as registry
from headrace.registry.parts import Part
from headrace.registry.store import ModelRow, VersionRow


def find(c: Connection, tenant: TenantRow, pipeline: Pipeline) -> tuple[Part, ...]:
    """The versions that a tenant's pipeline names.

    Raises:
        NotFound, Forbidden: a model or version that is not there, or not the tenant's nor granted to it.
        InvalidInput: one that is a pipeline itself.
    """
    first: dict[str, Step] = {}
    for step in pipeline.steps:
        if step.model is not None:
            first.setdefault(step.model, step)
    return tuple(_find(c, tenant, step, reference) for reference, step in first.items())


def _find(c: Connection, tenant: TenantRow, step: Step, reference: str) -> Part:
    asked = parse_reference(reference)
    where, field = f"step {step.name!r}", f"steps.{step.name}.model"
    owner = tenant if asked.tenant in (None, tenant.name) else _owner(c, asked.tenant or "", where, field)
    model = registry.find_model(c, owner.index, asked.model)
    if model is None or not _may_use(c, tenant, owner, model):
        if owner.index != tenant.index:  # whether it exists is not told to those to whom it is not granted
            raise Forbidden(
                f"{where}: {reference} is not granted to tenant {tenant.name!r}",
                field=field,
                hint=f"its owner grants it: headrace models grant {asked.model} {tenant.name}",
            )
        raise NotFound(
            f"{where}: model {asked.model!r} does not exist in tenant {owner.name!r}",
            field=field,
            hint=did_you_mean(asked.model, registry.model_names(c, owner.index)),
        )
    version = registry.find_version(c, model.id, asked.version or 0)
    if version is None:
        latest = registry.latest_version(c, model.id)
        raise NotFound(
            f"{where}: model {asked.model!r} has no version {asked.version}",
            field=field,
            hint=f"the latest is {asked.model}@{latest}" if latest else None,
        )
    if version.engine == "pipeline":
        raise InvalidInput(f"{where}: {reference} is a pipeline; write its steps into this one", field=field)
    return Part(reference, version)


def _owner(c: Connection, name: str, where: str, field: str) -> TenantRow:
    found = next((tenant for tenant in accounts.list_tenants(c) if tenant.name == name), None)
    if found is None:
        raise NotFound(f"{where}: tenant {name!r} does not exist", field=field)
    return found


def _may_use(c: Connection, tenant: TenantRow, owner: TenantRow, model: ModelRow) -> bool:
    return owner.index == tenant.index or tenant.index in registry.list_grants(c, [model.id]).get(model.id, [])


def served(found: Sequence[Part], path: Callable[[str], Path | None]) -> tuple[ServedPart, ...]:
    """Parts as a replica gets them. `path` says where an artifact lies; None: the node has to pull it."""
    return tuple(
        ServedPart(
            part.reference,
            part.version.engine,
            str(path(part.version.digest) or ""),
            part.version.digest,
            part.version.signature,
            part.version.options,
            part.version.size_bytes,
        )
        for part in found
    )


def _used_by(c: Connection, tenant: TenantRow, model: ModelRow) -> dict[int, list[str]]:
    """Version -> the pipelines that run it, as ``name@version``; another tenant's with its name before."""
    users = parts_store.users(c, model.id)
    rows = registry.find_models(c, {key[0] for keys in users.values() for key in keys})
    tenants = accounts.find_tenants(c, {row.tenant for row in rows.values()})

    def name(key: parts_store.Key) -> str:
        row = rows[key[0]]
        before = "" if row.tenant == tenant.index else f"{tenants[row.tenant].name}/"
        return f"{before}{row.name}@{key[1]}"

    return {version: [name(key) for key in keys] for version, keys in users.items()}


def versions(c: Connection, tenant: TenantRow, model: ModelRow) -> list[Version]:
    """A model's versions as the API shows them, oldest first."""
    return _shown(c, tenant, model, registry.list_versions(c, model.id))


def version(c: Connection, tenant: TenantRow, model: ModelRow, row: VersionRow) -> Version:
    """One of them."""
    return _shown(c, tenant, model, [row])[0]


def _shown(c: Connection, tenant: TenantRow, model: ModelRow, rows: Sequence[VersionRow]) -> list[Version]:
    parts = parts_store.of(c, [(row.model, row.version) for row in rows if row.engine == "pipeline"])
    users = _used_by(c, tenant, model)
    return [
        views.version(
            row,
            model.name,
            tenant.name,
            [part.reference for part in parts.get((row.model, row.version), ())],
            users.get(row.version, []),
        )
        for row in rows
    ]
