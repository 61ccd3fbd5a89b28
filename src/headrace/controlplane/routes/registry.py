"""Models, versions and grants."""

from __future__ import annotations

from typing import Any

from litestar import Request as Http
from litestar import Response, delete, get, patch, post, put
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy import Connection

from headrace.controlplane import accounts, registering, views
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import Platform, Request, check_range
from headrace.controlplane.routes.asked import (
    Api,
    Cursor,
    Limit,
    State,
    Tenant,
    context,
    has_tag,
    page,
    reach,
    read_deployment,
    read_model,
    read_number,
    tagged,
)
from headrace.core import resources as r
from headrace.core.database import KEYS_MAX
from headrace.core.errors import InvalidInput, NotFound
from headrace.registry import store as registry


@get("/api/v1/models", summary="List models")
async def list_models(
    request: Http[Any, Any, Any],
    platform: Api,
    tenant: Tenant = None,
    q: FromQuery[str | None] = None,
    tag: FromQuery[str | None] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Model]:
    """By tenant and name. `q`: terms that must all be found in what is said of the model and its versions (names,
    descriptions, tags, engine, inputs and outputs, lineage); `tag` is `name` or `name=value`."""
    asked = await context(request, tenant)
    found = await platform.store.read(lambda c: views.models(c, reach(c, asked), q))
    found = [m for m in found if has_tag(m.tags, tag)]
    return page(found, limit, cursor, lambda m: (m.tenant, m.name), lambda m: f"{m.tenant}/{m.name}", read_model)


def one_model(c: Connection, platform: Platform, asked: Request, name: str) -> r.Model:
    """A model as the API shows it. Raises NotFound."""
    tenant, row = platform.model(c, asked, name)
    return views.one_model(c, tenant, row)


@get("/api/v1/models/{model:str}", summary="Show a model")
async def show_model(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], tenant: Tenant = None
) -> Response[r.Model]:
    """What it is and what serves."""
    asked = await context(request, tenant)
    return tagged(await platform.store.read(lambda c: one_model(c, platform, asked, model)))


@patch("/api/v1/models/{model:str}", summary="Change a model's settings")
async def update_model(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    data: JSONBody[r.ModelUpdate],
    tenant: Tenant = None,
) -> r.Outcome[r.Model]:
    """Developer."""
    asked = await context(request, tenant, data.reason)
    asked.principal.need("developer")
    if data.timeout_s is not None and not 0 < data.timeout_s <= 3600:
        raise InvalidInput(f"timeout_s: {data.timeout_s}, expected more than 0 and at most 3600", field="timeout_s")
    if data.body_max_bytes is not None:
        check_range("body_max_bytes", data.body_max_bytes, 1, 1 << 30)

    def work(c: Connection) -> Record:
        owner, row = platform.model(c, asked, model)
        asked.match(views.tag(views.one_model(c, owner, row)))
        registry.update_model(c, row.id, data)
        given = {f: getattr(data, f) for f in data.__struct_fields__ if getattr(data, f) is not None and f != "reason"}
        return Record("model.update", owner.name, model, {f: getattr(row, f) for f in given}, given)

    return await platform.mutate(asked, work, lambda c, _: one_model(c, platform, asked, model), r.Model)


@get("/api/v1/versions", summary="List versions")
async def list_all_versions(
    request: Http[Any, Any, Any],
    platform: Api,
    tenant: Tenant = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Version]:
    """Of all models, by tenant, model and number."""
    asked = await context(request, tenant)

    def read(c: Connection) -> r.Page[r.Version]:
        tenants = {found.index: found for found in reach(c, asked)}
        owners = {row.id: (tenants[row.tenant], row) for row in registry.list_models(c) if row.tenant in tenants}

        def place(row: registry.VersionRow) -> tuple[str, str, int]:
            owner, model = owners[row.model]
            return owner.name, model.name, row.version

        rows = [row for row in registry.list_all_versions(c) if row.model in owners]
        found = page(rows, limit, cursor, place, lambda row: "{}/{}@{}".format(*place(row)), read_deployment)
        parts = [found.items[start : start + KEYS_MAX] for start in range(0, len(found.items), KEYS_MAX)]
        shown = [views.versions_of(c, {row.model: owners[row.model] for row in part}, part) for part in parts]
        return r.Page([version for part in shown for version in part], found.next)

    return await platform.store.read(read)


@get("/api/v1/models/{model:str}/versions", summary="List a model's versions")
async def list_versions(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    engine: FromQuery[str | None] = None,
    in_state: State = None,
    tag: FromQuery[str | None] = None,
    tenant: Tenant = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Version]:
    """Oldest first; `state` is `registered`, `validated`, `approved` or `retired`, `tag` is `name` or `name=value`."""
    asked = await context(request, tenant)

    def read(c: Connection) -> list[r.Version]:
        owner, row = platform.model(c, asked, model)
        return views.versions(c, owner, row, registry.list_versions(c, row.id))

    found = [v for v in await platform.store.read(read) if engine in (None, v.engine) and in_state in (None, v.state)]
    found = [v for v in found if has_tag(v.tags, tag)]
    return page(found, limit, cursor, lambda v: v.version, lambda v: str(v.version), read_number)


@get("/api/v1/models/{model:str}/versions/{number:str}", summary="Show a version")
async def show_version(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], number: FromPath[str], tenant: Tenant = None
) -> Response[r.Version]:
    """By number or alias. Everything that it is, which never changes, and what was decided of it."""
    asked = await context(request, tenant)

    def read(c: Connection) -> r.Version:
        owner, row = platform.model(c, asked, model)
        return views.versions(c, owner, row, [platform.version(c, row, number)])[0]

    return tagged(await platform.store.read(read))


@post("/api/v1/models/{model:str}/versions", summary="Register a version")
async def register(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    data: JSONBody[r.VersionCreate],
    tenant: Tenant = None,
) -> r.Outcome[r.Version]:
    """Developer. The artifact is examined in a process of its own before anything is stored."""
    return await registering.register(platform, await context(request, tenant), model, data)


@put("/api/v1/models/{model:str}/grants/{to:str}", summary="Let another tenant call a model")
async def grant(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], to: FromPath[str], tenant: Tenant = None
) -> r.Outcome[r.Model]:
    """Operator of the owning tenant."""
    asked = await context(request, tenant)
    asked.principal.need("operator")

    def work(c: Connection) -> Record:
        owner, row = platform.model(c, asked, model)
        changed = registry.grant(c, row.id, accounts.named_tenant(c, to).index)
        undo = f"headrace models revoke {model} {to}"
        return Record("model.grant", owner.name, model, None, {"tenant": to}, undo, changed)

    return await platform.mutate(asked, work, lambda c, _: one_model(c, platform, asked, model), r.Model)


@delete("/api/v1/models/{model:str}/grants/{to:str}", status_code=200, summary="Take a grant back")
async def revoke_grant(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], to: FromPath[str], tenant: Tenant = None
) -> r.Outcome[r.Model]:
    """Operator of the owning tenant."""
    asked = await context(request, tenant)
    asked.principal.need("operator")

    def work(c: Connection) -> Record:
        owner, row = platform.model(c, asked, model)
        if not registry.revoke_grant(c, row.id, accounts.named_tenant(c, to).index):
            raise NotFound(f"model {model!r} is not granted to {to!r}", field="tenant")
        undo = f"headrace models grant {model} {to}"
        return Record("model.revoke", owner.name, model, {"tenant": to}, None, undo)

    return await platform.mutate(asked, work, lambda c, _: one_model(c, platform, asked, model), r.Model)


HANDLERS = [
    list_models,
    show_model,
    update_model,
    list_all_versions,
    list_versions,
    show_version,
    register,
    grant,
    revoke_grant,
]
