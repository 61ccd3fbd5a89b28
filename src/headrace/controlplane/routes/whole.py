"""The platform as a whole: status, audit, health, metrics, and the API's own document."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from litestar import Request as Http
from litestar import get
from litestar.params import FromQuery
from sqlalchemy import Connection

from headrace import __version__
from headrace.controlplane import changes, openapi, views
from headrace.controlplane.routes.asked import Api, Cursor, Limit, Tenant, check_time, context, reach
from headrace.controlplane.routes.traffic import before_of, newest_first
from headrace.core import resources as r

STARTED = time.monotonic()


@get("/api/v1/status", summary="The platform at a glance")
async def status(request: Http[Any, Any, Any], platform: Api) -> r.Status:
    """Routers, models with rates of the last 10 s, deployments."""
    asked = await context(request)
    measured = platform.telemetry.models()
    statuses, standings, residents = platform.fleet.statuses(), platform.standings(), platform.telemetry.residents()

    def read(c: Connection) -> tuple[list[r.Model], list[r.Deployment]]:
        tenants = reach(c, asked)
        found = views.deployments(c, tenants, statuses, standings, residents, platform.starts)
        return views.models(c, tenants), found

    models, deployments = await platform.store.read(read)
    ready: Counter[tuple[str, str]] = Counter()
    for deployment in deployments:
        ready[deployment.tenant, deployment.model] += deployment.ready
    rows = []
    for model in models:
        row = measured.get(f"{model.tenant}/{model.name}")
        row = row or r.ModelStatus(model.name, model.tenant, {}, 0, 0.0, 0.0, None, None)
        row.serving = model.serving
        row.ready_replicas = ready[model.tenant, model.name]
        rows.append(row)
    routers = platform.telemetry.routers()
    epoch = max([router.epoch for router in routers], default=0)
    uptime_s = time.monotonic() - STARTED
    packs = platform.telemetry.packs() if asked.principal.role == "admin" else []
    fleet = platform.fleet.summary()
    about = (__version__, uptime_s, epoch, platform.url, platform.grpc_url)
    return r.Status(*about, routers, rows, deployments, packs, fleet)


@get("/api/v1/changes", summary="The audit")
async def list_changes(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromQuery[str | None] = None,
    since: FromQuery[str | None] = None,
    tenant: Tenant = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Change]:
    """Newest first; an admin sees all tenants'."""
    asked = await context(request, tenant)
    before = before_of(cursor)
    since = None if since is None else check_time(since, "since")

    def read(c: Connection) -> list[r.Change]:
        reached = reach(c, asked)
        name = reached[0].name if asked.tenant is not None or asked.principal.role != "admin" else None
        return changes.page(c, name, model, since, before, limit + 1)

    return newest_first(await platform.store.read(read), limit)


@get("/metrics", media_type="text/plain; version=0.0.4", include_in_schema=False, public=True)
async def metrics(platform: Api) -> bytes:
    """Prometheus exposition."""
    return platform.telemetry.prometheus()


@get("/healthz", include_in_schema=False, public=True)
async def health() -> dict[str, bool]:
    """The control plane answers."""
    return {"live": True}


@get("/openapi.json", include_in_schema=False, public=True, media_type="application/json")
async def described(request: Http[Any, Any, Any]) -> bytes:
    """This API as an OpenAPI document."""
    if not hasattr(request.app.state, "openapi"):
        request.app.state.openapi = openapi.document(request.app)
    content: bytes = request.app.state.openapi
    return content


HANDLERS = [status, list_changes, metrics, health, described]
