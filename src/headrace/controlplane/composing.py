"""What a pipeline is made of: the registered versions that its declaration names, found, shown, and looked into."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from msgspec.structs import replace
from sqlalchemy import Connection

from headrace.controlplane import accounts
from headrace.controlplane.accounts import TenantRow
from headrace.controlplane.platform import Platform
from headrace.core.errors import Conflict, Forbidden, InvalidInput, NotFound, Unprocessable
from headrace.core.names import did_you_mean, parse_reference
from headrace.core.pipeline import Pipeline, Step
from headrace.core.specs import Examination, ExaminationRequest, ServedPart
from headrace.registry import lifecycle
from headrace.registry import parts as parts_store
from headrace.registry import store as registry
from headrace.registry.parts import Part
from headrace.registry.store import ModelRow


def find(c: Connection, tenant: TenantRow, pipeline: Pipeline) -> tuple[Part, ...]:
    """The versions that a tenant's pipeline names.

    Raises:
        NotFound, Forbidden: a model or version that is not there, or not the tenant's nor granted to it.
        InvalidInput: one that is a pipeline itself.
        Conflict: one whose signature tests failed, or that is retired.
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
    assert isinstance(asked.version, int)  # a declaration with anything else is refused
    version = registry.find_version(c, model.id, asked.version)
    if version is None:
        latest = registry.latest_version(c, model.id)
        raise NotFound(
            f"{where}: model {asked.model!r} has no version {asked.version}",
            field=field,
            hint=f"the latest is {asked.model}@{latest}" if latest else None,
        )
    if version.engine == "pipeline":
        raise InvalidInput(f"{where}: {reference} is a pipeline; write its steps into this one", field=field)
    state = lifecycle.find(c, model.id, version.version).state
    if state in ("registered", "retired"):
        why = "is retired" if state == "retired" else "failed its signature tests"
        raise Conflict(f"{where}: {reference} {why}", field=field, hint="name a version that may take traffic")
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


def used_by(c: Connection, models: Collection[ModelRow]) -> dict[parts_store.Key, list[str]]:
    """Version of these models (at most `KEYS_MAX`) -> the pipelines that run it, as ``name@version``; another tenant's
    with its name before."""
    owners = {model.id: model.tenant for model in models}
    users = parts_store.users(c, owners)
    rows = registry.find_models(c, {key[0] for keys in users.values() for key in keys})
    tenants = accounts.find_tenants(c, {row.tenant for row in rows.values()})

    def name(key: parts_store.Key, tenant: int) -> str:
        row = rows[key[0]]
        before = "" if row.tenant == tenant else f"{tenants[row.tenant].name}/"
        return f"{before}{row.name}@{key[1]}"

    return {part: [name(key, owners[part[0]]) for key in keys] for part, keys in users.items()}


async def examine(
    platform: Platform, request: ExaminationRequest, artifact: tuple[str, int], found: Sequence[Part]
) -> Examination:
    """Bring an artifact here, with those that it runs, and look into it.

    Args:
        platform: the control plane.
        request: what to look for; its paths are filled in.
        artifact: digest and bytes.
        found: of a pipeline, the versions that it runs.

    Raises:
        Unprocessable: it does not load, or does not run.
        Unavailable: an artifact cannot be brought here.
    """
    async with AsyncExitStack() as near:
        needed = dict([artifact, *((part.version.digest, part.version.size_bytes) for part in found)])
        paths = {
            digest: await near.enter_async_context(platform.artifacts.local(digest, size))
            for digest, size in needed.items()
        }
        request = replace(request, path=str(paths[artifact[0]]), parts=served(found, paths.get))
        seen = await platform.examiner.examine(request)
    if seen.fault is not None:
        raise Unprocessable(seen.fault.message, field=seen.fault.field, hint=seen.fault.hint)
    return seen
