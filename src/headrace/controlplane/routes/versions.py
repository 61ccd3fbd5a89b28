"""What is done with versions: states, aliases, differences."""

from __future__ import annotations

from typing import Any

from litestar import Request as Http
from litestar import delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy import Connection

from headrace.controlplane import sampling, versioning, views
from headrace.controlplane.routes.asked import Api, Tenant, context
from headrace.core import resources as r
from headrace.registry import references
from headrace.registry.diff import diff


@post("/api/v1/models/{model:str}/versions/{number:str}/approve", status_code=200, summary="Approve a version")
async def approve(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    number: FromPath[str],
    data: JSONBody[r.Reason | None] = None,
    tenant: Tenant = None,
) -> r.Outcome[r.Version]:
    """Operator; under four eyes another than who registered it. It may then take traffic where the tenant wants
    versions approved."""
    asked = await context(request, tenant, data.reason if data is not None else None)
    return await versioning.approve(platform, asked, model, number)


@post("/api/v1/models/{model:str}/versions/{number:str}/retire", status_code=200, summary="Retire a version")
async def retire(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    number: FromPath[str],
    data: JSONBody[r.Reason | None] = None,
    tenant: Tenant = None,
) -> r.Outcome[r.Version]:
    """Operator. For good: nobody may deploy it any more. Refused while it is deployed, pinned or aliased."""
    asked = await context(request, tenant, data.reason if data is not None else None)
    return await versioning.retire(platform, asked, model, number)


@post("/api/v1/models/{model:str}/versions/{number:str}/validate", status_code=200, summary="Run signature tests")
async def validate(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    number: FromPath[str],
    data: JSONBody[r.GoldenRun],
    tenant: Tenant = None,
) -> r.Outcome[r.Version]:
    """Developer. Those that the version has, or others in their place; `tests` of the result tells how they went."""
    asked = await context(request, tenant, data.reason)
    return await versioning.validate(platform, asked, model, number, data)


@post("/api/v1/models/{model:str}/versions/{number:str}/reference", status_code=200, summary="Attach a reference")
async def attach_reference(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    number: FromPath[str],
    data: JSONBody[r.ReferenceCreate],
    tenant: Tenant = None,
) -> r.Outcome[r.Version]:
    """Developer. Computes statistics of a sample of the model's inputs, and of its answers to it. Once: they never
    change."""
    asked = await context(request, tenant, data.reason)
    return await sampling.attach(platform, asked, model, number, data.reference)


@get("/api/v1/models/{model:str}/versions/{number:str}/reference", summary="Show reference statistics")
async def show_reference(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], number: FromPath[str], tenant: Tenant = None
) -> r.VersionReference:
    """Bins, counts and moments of each input and output."""
    asked = await context(request, tenant)
    return await platform.store.read(lambda c: sampling.show(platform, c, asked, model, number))


@delete("/api/v1/models/{model:str}/versions/{number:str}", status_code=200, summary="Delete a version")
async def delete_version(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    number: FromPath[str],
    tenant: Tenant = None,
) -> r.Outcome[r.Version]:
    """Operator. Only what is retired, and nothing refers to: no deployment, policy, rollback, pin, alias, or version
    made from it. The result is what it was; its number is never given again."""
    return await versioning.delete(platform, await context(request, tenant), model, number)


@put("/api/v1/models/{model:str}/aliases/{alias:str}", summary="Point an alias at a version")
async def set_alias(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    alias: FromPath[str],
    data: JSONBody[r.AliasUpdate],
    tenant: Tenant = None,
) -> r.Outcome[r.Model]:
    """Operator. Moved for all at once: in this API and, as ``/v2/models/{model}/versions/{alias}``, in the data
    plane."""
    return await versioning.set_alias(platform, await context(request, tenant, data.reason), model, alias, data)


@delete("/api/v1/models/{model:str}/aliases/{alias:str}", status_code=200, summary="Take an alias away")
async def remove_alias(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], alias: FromPath[str], tenant: Tenant = None
) -> r.Outcome[r.Model]:
    """Operator."""
    return await versioning.remove_alias(platform, await context(request, tenant), model, alias)


@get("/api/v1/models/{model:str}/diff", summary="Compare two versions")
async def diff_versions(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    old: FromQuery[str],
    new: FromQuery[str],
    tenant: Tenant = None,
) -> r.VersionDiff:
    """The fields that differ; `old` and `new` are numbers or aliases."""
    asked = await context(request, tenant)

    def read(c: Connection) -> r.VersionDiff:
        owner, row = platform.model(c, asked, model)
        rows = [platform.version(c, row, wanted) for wanted in (old, new)]
        one, other = (views.versions(c, owner, row, [version])[0] for version in rows)
        found = [references.find(c, row.id, version.version) for version in (one, other)]
        return r.VersionDiff(row.name, owner.name, one.version, other.version, diff(one, other, *found))

    return await platform.store.run(read)


HANDLERS = [
    approve,
    retire,
    validate,
    attach_reference,
    show_reference,
    delete_version,
    set_alias,
    remove_alias,
    diff_versions,
]
