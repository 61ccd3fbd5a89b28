"""Traffic policies, rollback and pins."""

from __future__ import annotations

from typing import Any

from litestar import Request as Http
from litestar import Response, delete, get, post, put
from litestar.params import FromPath, JSONBody
from sqlalchemy import Connection

from headrace.controlplane import changes, routing, views
from headrace.controlplane.routes.asked import (
    Api,
    Cursor,
    Limit,
    Tenant,
    context,
    page,
    reach,
    read_model,
    read_number,
    tagged,
)
from headrace.core import resources as r


@get("/api/v1/traffic", summary="List traffic policies")
async def list_traffic(
    request: Http[Any, Any, Any],
    platform: Api,
    tenant: Tenant = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Traffic]:
    """Of all models, by tenant and model."""
    asked = await context(request, tenant)
    found = await platform.store.read(lambda c: views.policies(c, reach(c, asked)))
    return page(found, limit, cursor, lambda t: (t.tenant, t.model), lambda t: f"{t.tenant}/{t.model}", read_model)


@get("/api/v1/models/{model:str}/traffic", summary="Show a model's traffic policy")
async def show_traffic(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], tenant: Tenant = None
) -> Response[r.Traffic]:
    """Its epoch is the ETag."""
    asked = await context(request, tenant)
    return tagged(await platform.store.read(lambda c: routing.show_traffic(platform, c, asked, model)))


@put("/api/v1/models/{model:str}/traffic", summary="Split a model's traffic")
async def set_traffic(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    data: JSONBody[r.TrafficUpdate],
    tenant: Tenant = None,
) -> r.Outcome[r.Traffic]:
    """Operator. Answers when all routers serve by it (`effective`), or after 2 s."""
    return await routing.set_weights(platform, await context(request, tenant, data.reason), model, data)


@post("/api/v1/models/{model:str}/rollback", status_code=200, summary="Roll the traffic back")
async def rollback(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    data: JSONBody[r.Reason | None] = None,
    tenant: Tenant = None,
) -> r.Outcome[r.Traffic]:
    """Operator. Puts back the split before the one in force; again: puts that one back."""
    return await routing.rollback(
        platform, await context(request, tenant, data.reason if data is not None else None), model
    )


@put("/api/v1/models/{model:str}/traffic/overrides/{pinned:str}", summary="Pin a tenant to a version")
async def pin(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    pinned: FromPath[str],
    data: JSONBody[r.OverrideUpdate],
    tenant: Tenant = None,
) -> r.Outcome[r.Traffic]:
    """Operator. Comes before the split."""
    return await routing.pin(platform, await context(request, tenant, data.reason), model, pinned, data.version)


@delete("/api/v1/models/{model:str}/traffic/overrides/{pinned:str}", status_code=200, summary="Unpin a tenant")
async def unpin(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], pinned: FromPath[str], tenant: Tenant = None
) -> r.Outcome[r.Traffic]:
    """Operator."""
    return await routing.pin(platform, await context(request, tenant), model, pinned, None)


@get("/api/v1/models/{model:str}/traffic/history", summary="Every routing change of a model")
async def traffic_history(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    tenant: Tenant = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Change]:
    """Who, when, from, to; newest first."""
    asked = await context(request, tenant)

    def read(c: Connection) -> list[r.Change]:
        owner, _ = platform.model(c, asked, model)
        return changes.page(c, owner.name, model, None, before_of(cursor), limit + 1, "traffic")

    return newest_first(await platform.store.read(read), limit)


def before_of(cursor: str | None) -> int | None:
    """The change before which a page begins. Raises InvalidInput."""
    page([], 1, cursor, int, str, read_number)  # says what is wrong with it
    return None if cursor is None else read_number(cursor)


def newest_first(found: list[r.Change], limit: int) -> r.Page[r.Change]:
    """A page of changes, of one more than fit."""
    return r.Page(found[:limit], str(found[limit - 1].id) if len(found) > limit else None)


HANDLERS = [list_traffic, show_traffic, set_traffic, rollback, pin, unpin, traffic_history]
