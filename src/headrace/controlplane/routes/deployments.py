"""Deployments."""

from __future__ import annotations

from typing import Any

from litestar import Request as Http
from litestar import Response, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody

from headrace.controlplane import deploying, views
from headrace.controlplane.routes.asked import (
    Api,
    Cursor,
    Force,
    Limit,
    State,
    Tenant,
    context,
    page,
    reach,
    read_deployment,
    tagged,
)
from headrace.core import resources as r
from headrace.core.errors import InvalidInput
from headrace.core.names import VersionName, parse_reference


def split_reference(text: str) -> tuple[str, VersionName]:
    """``churn@4`` or ``churn@champion``. Raises InvalidInput."""
    reference = parse_reference(text)
    if reference.version is None:
        raise InvalidInput(f"{text!r} names no version", field="version", hint=f"for example {text}@1")
    return reference.model, reference.version


@get("/api/v1/deployments", summary="List deployments")
async def list_deployments(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromQuery[str | None] = None,
    in_state: State = None,
    tenant: Tenant = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Deployment]:
    """By tenant, model and version."""
    asked = await context(request, tenant)
    statuses, standings, residents = platform.fleet.statuses(), platform.standings(), platform.telemetry.residents()
    found = await platform.store.read(
        lambda c: views.deployments(c, reach(c, asked), statuses, standings, residents, platform.starts)
    )
    found = [d for d in found if model in (None, d.model) and in_state in (None, d.state)]
    return page(
        found,
        limit,
        cursor,
        lambda d: (d.tenant, d.model, d.version),
        lambda d: f"{d.tenant}/{d.model}@{d.version}",
        read_deployment,
    )


@post("/api/v1/deployments", summary="Deploy a version")
async def deploy(
    request: Http[Any, Any, Any], platform: Api, data: JSONBody[r.DeploymentCreate]
) -> r.Outcome[r.Deployment]:
    """Operator. Returns at once; GET tells how far it is."""
    asked = await context(request, data.tenant or parse_reference(data.model).tenant, data.reason)
    return await deploying.deploy(platform, asked, data)


@get("/api/v1/deployments/{reference:str}", summary="Show a deployment")
async def show_deployment(
    request: Http[Any, Any, Any], platform: Api, reference: FromPath[str], tenant: Tenant = None
) -> Response[r.Deployment]:
    """``churn@4``. The ETag moves with what is desired, not with what its replicas do at the moment."""
    asked = await context(request, tenant)
    model, version = split_reference(reference)
    return tagged(await platform.store.read(lambda c: deploying.show_deployment(platform, c, asked, model, version)))


@patch("/api/v1/deployments/{reference:str}", summary="Scale a deployment")
async def scale(
    request: Http[Any, Any, Any],
    platform: Api,
    reference: FromPath[str],
    data: JSONBody[r.DeploymentUpdate],
    tenant: Tenant = None,
) -> r.Outcome[r.Deployment]:
    """Operator. To 0 while the version has traffic or pinned tenants only with `force`."""
    asked = await context(request, tenant, data.reason)
    model, version = split_reference(reference)
    return await deploying.scale(platform, asked, model, version, data.replicas, data.force)


@delete("/api/v1/deployments/{reference:str}", status_code=200, summary="Undeploy a version")
async def undeploy(
    request: Http[Any, Any, Any],
    platform: Api,
    reference: FromPath[str],
    force: Force = False,
    tenant: Tenant = None,
) -> r.Outcome[r.Deployment]:
    """Operator. The result is what is left of it: nothing, once its replicas have drained. Refused while the version
    has traffic or pinned tenants, unless with `force`."""
    asked = await context(request, tenant)
    model, version = split_reference(reference)
    return await deploying.undeploy(platform, asked, model, version, force)


HANDLERS = [list_deployments, deploy, show_deployment, scale, undeploy]
