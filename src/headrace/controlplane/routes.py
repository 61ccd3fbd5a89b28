"""The control plane's REST API: thin handlers over the use cases of `platform`."""

from __future__ import annotations

import datetime
import hashlib
import time
from collections import Counter
from typing import Annotated, Any

import msgspec
from litestar import Request as Http
from litestar import Response, delete, get, patch, post, put
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from sqlalchemy import Connection

from headrace import __version__
from headrace.controlplane import accounts, changes, openapi, views
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import Platform, Request, check_range
from headrace.core import resources as r
from headrace.core.errors import Conflict, InvalidInput, NotFound
from headrace.core.names import check_name, parse_reference
from headrace.registry import store as registry
from headrace.traffic import store as traffic

STARTED = time.monotonic()
LIMIT_MAX = 1000
Api = NamedDependency[Platform]
Tenant = Annotated[str | None, QueryParameter(description="Another tenant whose resources are meant (admins).")]
Limit = Annotated[int, QueryParameter(ge=1, le=LIMIT_MAX, description="Most items on the page.")]
Cursor = Annotated[str | None, QueryParameter(description="`next` of the page before.")]


async def authenticate(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard of every route but those that say `public`: runs before anything of the asked is decoded."""
    if not handler.opt.get("public"):
        platform: Platform = connection.app.state.platform
        connection.state.principal = await platform.authenticate(connection.headers.get("authorization"))


async def context(request: Http[Any, Any, Any], platform: Platform, tenant: str | None, reason: str | None) -> Request:
    """Who asks, for whom, why, and whether it may be asked again."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return Request(request.state.principal, tenant, reason)
    if not 1 <= len(key) <= 200:
        raise InvalidInput("idempotency-key: expected 1 to 200 characters", field="idempotency-key")
    whole = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode() + await request.body())
    return Request(request.state.principal, tenant, reason, key, whole.digest())


def reach(c: Connection, asked: Request) -> list[accounts.TenantRow]:
    """The tenants whose resources a list shows: the one named, all for an admin, else the caller's own."""
    if asked.tenant is None and asked.principal.role == "admin":
        return accounts.list_tenants(c)
    return [Platform.tenant(c, asked)]


# ---------------------------------------------------------------------------------------------------- status
@get("/api/v1/status", summary="The platform at a glance")
async def status(request: Http[Any, Any, Any], platform: Api) -> r.Status:
    """Routers, models with rates of the last 10 s, deployments."""
    asked = await context(request, platform, None, None)
    measured = platform.telemetry.models()
    statuses, standings = platform.fleet.statuses(), platform.standings()

    def read(c: Connection) -> tuple[list[r.Model], list[r.Deployment]]:
        tenants = reach(c, asked)
        return views.models(c, tenants), views.deployments(c, tenants, statuses, standings)

    models, deployments = await platform.store.run(read)
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
    return r.Status(__version__, time.monotonic() - STARTED, epoch, routers, rows, deployments)


# ---------------------------------------------------------------------------------------------------- tenants, keys
@get("/api/v1/tenants", summary="List tenants")
async def list_tenants(request: Http[Any, Any, Any], platform: Api) -> r.Page[r.Tenant]:
    """All tenants for an admin, else the caller's own."""
    asked = await context(request, platform, None, None)
    return r.Page(await platform.store.run(lambda c: [t.resource() for t in reach(c, asked)]))


@post("/api/v1/tenants", summary="Create a tenant")
async def create_tenant(
    request: Http[Any, Any, Any], platform: Api, data: JSONBody[r.TenantCreate]
) -> r.Outcome[r.Tenant]:
    """Admin."""
    asked = await context(request, platform, None, None)
    asked.principal.need("admin")
    check_name(data.name)
    check_quota(data.quota)

    def work(c: Connection) -> Record:
        if accounts.find_tenant(c, data.name) is not None:
            raise Conflict(f"tenant {data.name!r} exists", field="name")
        accounts.create_tenant(c, data.name, data.quota)
        return Record("tenant.create", data.name, data.name, None, {"name": data.name})

    change = await platform.mutate(asked, work)
    return r.Outcome(await platform.store.run(lambda c: named(c, data.name).resource()), change)


def named(c: Connection, name: str) -> accounts.TenantRow:
    """A tenant by name. Raises NotFound."""
    found = accounts.find_tenant(c, name)
    if found is None:
        raise NotFound(f"tenant {name!r} does not exist", field="tenant")
    return found


def check_quota(quota: r.Quota) -> None:
    """Raises InvalidInput for limits that no tenant could live with."""
    for field, value in (("rate_per_s", quota.rate_per_s), ("burst", quota.burst)):
        if not 0 < value <= 1e9:
            raise InvalidInput(f"quota.{field}: {value}, expected more than 0 and at most 1e9", field=f"quota.{field}")
    check_range("quota.max_in_flight", quota.max_in_flight, 1, 10_000_000)


@get("/api/v1/tenants/{name:str}", summary="Show a tenant")
async def show_tenant(request: Http[Any, Any, Any], platform: Api, name: FromPath[str]) -> r.Tenant:
    """The caller's own, or any for an admin."""
    asked = await context(request, platform, name, None)
    return await platform.store.run(lambda c: Platform.tenant(c, asked).resource())


@patch("/api/v1/tenants/{name:str}", summary="Change a tenant's quota or state")
async def update_tenant(
    request: Http[Any, Any, Any], platform: Api, name: FromPath[str], data: JSONBody[r.TenantUpdate]
) -> r.Outcome[r.Tenant]:
    """Admin."""
    asked = await context(request, platform, None, data.reason)
    asked.principal.need("admin")

    def work(c: Connection) -> Record:
        before = named(c, name).resource()
        if data.state == "suspended" and name == asked.principal.tenant.name:
            raise Conflict(f"tenant {name!r} is your own: you could not take it back", field="state")
        quota = r.Quota(
            before.quota.rate_per_s if data.rate_per_s is None else data.rate_per_s,
            before.quota.burst if data.burst is None else data.burst,
            before.quota.max_in_flight if data.max_in_flight is None else data.max_in_flight,
        )
        check_quota(quota)
        values = {"rate_per_s": quota.rate_per_s, "burst": quota.burst, "max_in_flight": quota.max_in_flight}
        after: dict[str, object] = {**values, "state": data.state or before.state}
        accounts.update_tenant(c, name, after)
        old = before.quota
        shown = {"rate_per_s": old.rate_per_s, "burst": old.burst, "max_in_flight": old.max_in_flight}
        undo = f"headrace tenants update {name} --rate {old.rate_per_s:g} --burst {old.burst:g}"
        return Record("tenant.update", name, name, {**shown, "state": before.state}, after, undo)

    change = await platform.mutate(asked, work)
    return r.Outcome(await platform.store.run(lambda c: named(c, name).resource()), change)


@get("/api/v1/keys", summary="List API keys")
async def list_keys(request: Http[Any, Any, Any], platform: Api, tenant: Tenant = None) -> r.Page[r.Key]:
    """Admin; never their secrets."""
    asked = await context(request, platform, tenant, None)
    asked.principal.need("admin")

    def read(c: Connection) -> list[r.Key]:
        names = {t.index: t.name for t in reach(c, asked)}
        return [key.resource(names[key.tenant]) for key in accounts.list_keys(c) if key.tenant in names]

    return r.Page(await platform.store.run(read))


@post("/api/v1/keys", summary="Create an API key")
async def create_key(
    request: Http[Any, Any, Any], platform: Api, data: JSONBody[r.KeyCreate]
) -> r.Outcome[r.KeyCreated]:
    """Admin. The reply is the only place where the key's text is ever shown, so this is not replayed."""
    asked = await context(request, platform, data.tenant, None)
    asked.principal.need("admin")
    if len(data.label) > 200:
        raise InvalidInput("label: longer than 200 characters", field="label")
    made: list[r.KeyCreated] = []

    def work(c: Connection) -> Record:
        tenant = Platform.tenant(c, asked)
        row, text = accounts.create_key(c, tenant.index, data.role, data.label)
        made.append(r.KeyCreated(row.resource(tenant.name), text))
        after = {"id": row.id, "role": row.role}
        return Record("key.create", tenant.name, row.id, None, after, f"headrace keys revoke {row.id}")

    once = Request(asked.principal, asked.tenant)
    change = await platform.mutate(once, work)
    return r.Outcome(made[0], change)


@delete("/api/v1/keys/{id_:str}", status_code=200, summary="Revoke an API key")
async def revoke_key(request: Http[Any, Any, Any], platform: Api, id_: FromPath[str]) -> r.Outcome[r.Key]:
    """Admin. In effect on every router when this answers with `effective`."""
    asked = await context(request, platform, None, None)
    asked.principal.need("admin")

    def find(c: Connection) -> r.Key:
        row = accounts.find_key(c, id_)
        if row is None:
            raise NotFound(f"key {id_!r} does not exist", field="id")
        return row.resource(next(t.name for t in accounts.list_tenants(c) if t.index == row.tenant))

    def work(c: Connection) -> Record:
        if id_ == asked.principal.key:
            raise Conflict("a key cannot revoke itself", field="id")
        key = find(c)
        accounts.revoke_key(c, id_)
        return Record("key.revoke", key.tenant, id_, {"state": key.state}, {"state": "revoked"})

    change = await platform.mutate(asked, work)
    return r.Outcome(await platform.store.run(find), change)


# ---------------------------------------------------------------------------------------------------- registry
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
    """By tenant and name; `q` finds in name and description, `tag` is `name` or `name=value`."""
    asked = await context(request, platform, tenant, None)
    found = await platform.store.run(lambda c: views.models(c, reach(c, asked)))
    if q is not None:
        found = [m for m in found if q.lower() in m.name.lower() or q.lower() in m.description.lower()]
    if tag is not None:
        name, given, value = tag.partition("=")
        found = [m for m in found if name in m.tags and (not given or m.tags[name] == value)]
    if cursor is not None:
        found = [m for m in found if f"{m.tenant}/{m.name}" > cursor]
    more = f"{found[limit - 1].tenant}/{found[limit - 1].name}" if len(found) > limit else None
    return r.Page(found[:limit], more)


async def one_model(platform: Platform, asked: Request, name: str) -> r.Model:
    """A model as the API shows it. Raises NotFound."""

    def read(c: Connection) -> r.Model:
        tenant, row = platform.model(c, asked, name)
        names = {t.index: t.name for t in accounts.list_tenants(c)}
        granted = registry.list_grants(c).get(row.id, [])
        return views.model(row, tenant, names, granted, registry.latest_version(c, row.id), traffic.current(c, row.id))

    return await platform.store.run(read)


@get("/api/v1/models/{model:str}", summary="Show a model")
async def show_model(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], tenant: Tenant = None
) -> r.Model:
    """What it is and what serves."""
    return await one_model(platform, await context(request, platform, tenant, None), model)


@patch("/api/v1/models/{model:str}", summary="Change a model's settings")
async def update_model(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    data: JSONBody[r.ModelUpdate],
    tenant: Tenant = None,
) -> r.Outcome[r.Model]:
    """Developer."""
    asked = await context(request, platform, tenant, data.reason)
    asked.principal.need("developer")
    if data.timeout_s is not None and not 0 < data.timeout_s <= 3600:
        raise InvalidInput(f"timeout_s: {data.timeout_s}, expected more than 0 and at most 3600", field="timeout_s")
    if data.body_max_bytes is not None:
        check_range("body_max_bytes", data.body_max_bytes, 1, 1 << 30)

    def work(c: Connection) -> Record:
        owner, row = platform.model(c, asked, model)
        registry.update_model(c, row.id, data)
        given = {f: getattr(data, f) for f in data.__struct_fields__ if getattr(data, f) is not None and f != "reason"}
        return Record("model.update", owner.name, model, {f: getattr(row, f) for f in given}, given)

    change = await platform.mutate(asked, work)
    return r.Outcome(await one_model(platform, asked, model), change)


@get("/api/v1/models/{model:str}/versions", summary="List a model's versions")
async def list_versions(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], tenant: Tenant = None
) -> r.Page[r.Version]:
    """Oldest first."""
    asked = await context(request, platform, tenant, None)

    def read(c: Connection) -> list[r.Version]:
        owner, row = platform.model(c, asked, model)
        return [views.version(v, row.name, owner.name) for v in registry.list_versions(c, row.id)]

    return r.Page(await platform.store.run(read))


async def one_version(platform: Platform, asked: Request, model: str, number: int) -> r.Version:
    """A version as the API shows it. Raises NotFound."""

    def read(c: Connection) -> r.Version:
        owner, row = platform.model(c, asked, model)
        return views.version(platform.version(c, row, number), row.name, owner.name)

    return await platform.store.run(read)


@get("/api/v1/models/{model:str}/versions/{number:int}", summary="Show a version")
async def show_version(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], number: FromPath[int], tenant: Tenant = None
) -> r.Version:
    """Everything that it is; it never changes."""
    return await one_version(platform, await context(request, platform, tenant, None), model, number)


@post("/api/v1/models/{model:str}/versions", summary="Register a version")
async def register(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    data: JSONBody[r.VersionCreate],
    tenant: Tenant = None,
) -> r.Outcome[r.Version]:
    """Developer. The artifact is examined in a process of its own before anything is stored."""
    asked = await context(request, platform, tenant, None)
    number, change = await platform.register(asked, model, data)
    return r.Outcome(await one_version(platform, asked, model, number), change)


@put("/api/v1/models/{model:str}/grants/{to:str}", summary="Let another tenant call a model")
async def grant(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], to: FromPath[str], tenant: Tenant = None
) -> r.Outcome[r.Model]:
    """Operator of the owning tenant."""
    asked = await context(request, platform, tenant, None)
    asked.principal.need("operator")

    def work(c: Connection) -> Record:
        owner, row = platform.model(c, asked, model)
        changed = registry.grant(c, row.id, named(c, to).index)
        undo = f"DELETE /api/v1/models/{model}/grants/{to}"
        return Record("model.grant", owner.name, model, None, {"tenant": to}, undo, changed)

    change = await platform.mutate(asked, work)
    return r.Outcome(await one_model(platform, asked, model), change)


@delete("/api/v1/models/{model:str}/grants/{to:str}", status_code=200, summary="Take a grant back")
async def revoke_grant(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], to: FromPath[str], tenant: Tenant = None
) -> r.Outcome[r.Model]:
    """Operator of the owning tenant."""
    asked = await context(request, platform, tenant, None)
    asked.principal.need("operator")

    def work(c: Connection) -> Record:
        owner, row = platform.model(c, asked, model)
        if not registry.revoke_grant(c, row.id, named(c, to).index):
            raise NotFound(f"model {model!r} is not granted to {to!r}", field="tenant")
        undo = f"PUT /api/v1/models/{model}/grants/{to}"
        return Record("model.revoke", owner.name, model, {"tenant": to}, None, undo)

    change = await platform.mutate(asked, work)
    return r.Outcome(await one_model(platform, asked, model), change)


# ---------------------------------------------------------------------------------------------------- deployments
async def some_deployments(platform: Platform, asked: Request) -> list[r.Deployment]:
    """The deployments that the caller sees."""
    statuses, standings = platform.fleet.statuses(), platform.standings()
    return await platform.store.run(lambda c: views.deployments(c, reach(c, asked), statuses, standings))


async def one_deployment(platform: Platform, asked: Request, model: str, version: int) -> r.Deployment:
    """A deployment. Raises NotFound."""
    mine = Request(asked.principal, asked.tenant or asked.principal.tenant.name)
    for found in await some_deployments(platform, mine):
        if (found.model, found.version) == (model, version):
            return found
    hint = f"headrace deploy {model}@{version}"
    raise NotFound(f"{model}@{version} is not deployed", field="version", hint=hint)


def split_reference(text: str) -> tuple[str, int]:
    """``churn@4``. Raises InvalidInput."""
    reference = parse_reference(text)
    if reference.version is None:
        raise InvalidInput(f"{text!r} names no version", field="version", hint=f"for example {text}@1")
    return reference.model, reference.version


@get("/api/v1/deployments", summary="List deployments")
async def list_deployments(
    request: Http[Any, Any, Any], platform: Api, model: FromQuery[str | None] = None, tenant: Tenant = None
) -> r.Page[r.Deployment]:
    """Oldest first."""
    found = await some_deployments(platform, await context(request, platform, tenant, None))
    return r.Page([d for d in found if model in (None, d.model)])


@post("/api/v1/deployments", summary="Deploy a version")
async def deploy(
    request: Http[Any, Any, Any], platform: Api, data: JSONBody[r.DeploymentCreate]
) -> r.Outcome[r.Deployment]:
    """Operator. Returns at once; GET tells how far it is."""
    asked = await context(request, platform, data.tenant or parse_reference(data.model).tenant, data.reason)
    model, version, change = await platform.deploy(asked, data)
    return r.Outcome(await one_deployment(platform, asked, model, version), change)


@get("/api/v1/deployments/{reference:str}", summary="Show a deployment")
async def show_deployment(
    request: Http[Any, Any, Any], platform: Api, reference: FromPath[str], tenant: Tenant = None
) -> r.Deployment:
    """``churn@4``."""
    return await one_deployment(platform, await context(request, platform, tenant, None), *split_reference(reference))


@patch("/api/v1/deployments/{reference:str}", summary="Scale a deployment")
async def scale(
    request: Http[Any, Any, Any],
    platform: Api,
    reference: FromPath[str],
    data: JSONBody[r.DeploymentUpdate],
    tenant: Tenant = None,
) -> r.Outcome[r.Deployment]:
    """Operator."""
    asked = await context(request, platform, tenant, data.reason)
    model, version = split_reference(reference)
    change = await platform.scale(asked, model, version, data.replicas)
    return r.Outcome(await one_deployment(platform, asked, model, version), change)


@delete("/api/v1/deployments/{reference:str}", status_code=200, summary="Undeploy a version")
async def undeploy(
    request: Http[Any, Any, Any], platform: Api, reference: FromPath[str], tenant: Tenant = None
) -> r.Outcome[r.Deployment]:
    """Operator. The result is what is left of it: nothing, once its replicas have drained."""
    asked = await context(request, platform, tenant, None)
    model, version = split_reference(reference)
    tenant_name = asked.tenant or asked.principal.tenant.name
    change, created_at = await platform.undeploy(asked, model, version)
    gone = r.Deployment(model, tenant_name, version, "stopped", 0, 0, 0, "undeployed", [], 0.0, created_at)
    return r.Outcome(gone, change)


# ---------------------------------------------------------------------------------------------------- traffic
async def one_policy(platform: Platform, asked: Request, model: str) -> r.Traffic:
    """A model's policy. Raises NotFound."""

    def read(c: Connection) -> r.Traffic:
        owner, row = platform.model(c, asked, model)
        return views.policy(c, row, owner.name)

    return await platform.store.run(read)


@get("/api/v1/models/{model:str}/traffic", summary="Show a model's traffic policy")
async def show_traffic(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], tenant: Tenant = None
) -> Response[r.Traffic]:
    """Its epoch is the ETag."""
    policy = await one_policy(platform, await context(request, platform, tenant, None), model)
    return Response(policy, headers={"etag": f'"{policy.epoch}"'})


@put("/api/v1/models/{model:str}/traffic", summary="Split a model's traffic")
async def set_traffic(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    data: JSONBody[r.TrafficUpdate],
    tenant: Tenant = None,
) -> r.Outcome[r.Traffic]:
    """Operator. Answers when all routers serve by it (`effective`), or after 2 s."""
    asked = await context(request, platform, tenant, data.reason)
    expected = request.headers.get("if-match", "").strip('" ')
    if expected and expected != "*" and not (expected.isascii() and expected.isdigit() and len(expected) < 10):
        raise InvalidInput(f"If-Match: {expected!r} is no epoch", field="if-match")
    epoch = int(expected) if expected.isdigit() else None
    change = await platform.set_weights(asked, model, data, epoch)
    return r.Outcome(await one_policy(platform, asked, model), change)


@post("/api/v1/models/{model:str}/rollback", status_code=200, summary="Roll the traffic back")
async def rollback(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    data: JSONBody[r.Reason | None] = None,
    tenant: Tenant = None,
) -> r.Outcome[r.Traffic]:
    """Operator. Puts back the split before the one in force; again: puts that one back."""
    asked = await context(request, platform, tenant, data.reason if data is not None else None)
    change = await platform.rollback(asked, model)
    return r.Outcome(await one_policy(platform, asked, model), change)


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
    asked = await context(request, platform, tenant, data.reason)
    change = await platform.pin(asked, model, pinned, data.version)
    return r.Outcome(await one_policy(platform, asked, model), change)


@delete("/api/v1/models/{model:str}/traffic/overrides/{pinned:str}", status_code=200, summary="Unpin a tenant")
async def unpin(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], pinned: FromPath[str], tenant: Tenant = None
) -> r.Outcome[r.Traffic]:
    """Operator."""
    asked = await context(request, platform, tenant, None)
    change = await platform.pin(asked, model, pinned, None)
    return r.Outcome(await one_policy(platform, asked, model), change)


@get("/api/v1/models/{model:str}/traffic/history", summary="Every routing change of a model")
async def traffic_history(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], tenant: Tenant = None, limit: Limit = 100
) -> r.Page[r.Change]:
    """Who, when, from, to; newest first."""
    asked = await context(request, platform, tenant, None)

    def read(c: Connection) -> list[r.Change]:
        owner, _ = platform.model(c, asked, model)
        return changes.page(c, owner.name, model, None, None, limit, "traffic")

    return r.Page(await platform.store.run(read))


def check_time(text: str, field: str) -> str:
    """A time as the store writes it. Raises InvalidInput unless it is RFC 3339 with an offset."""
    try:
        at = msgspec.convert(text, datetime.datetime)
        if at.tzinfo is None:
            raise ValueError
        return at.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise InvalidInput(f"{field}: {text[:40]!r}, expected a time like 2026-01-31T08:00:00Z", field=field) from None


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
    asked = await context(request, platform, tenant, None)
    if cursor is not None and not (cursor.isascii() and cursor.isdigit()):
        raise InvalidInput(f"cursor: {cursor!r} is none of ours", field="cursor")
    before = int(cursor[:18]) if cursor is not None else None
    since = None if since is None else check_time(since, "since")

    def read(c: Connection) -> list[r.Change]:
        reached = reach(c, asked)
        name = reached[0].name if asked.tenant is not None or asked.principal.role != "admin" else None
        return changes.page(c, name, model, since, before, limit + 1)

    found = await platform.store.run(read)
    return r.Page(found[:limit], str(found[limit - 1].id) if len(found) > limit else None)


# ---------------------------------------------------------------------------------------------------- the rest
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


HANDLERS = [
    status,
    list_tenants,
    create_tenant,
    show_tenant,
    update_tenant,
    list_keys,
    create_key,
    revoke_key,
    list_models,
    show_model,
    update_model,
    list_versions,
    show_version,
    register,
    grant,
    revoke_grant,
    list_deployments,
    deploy,
    show_deployment,
    scale,
    undeploy,
    show_traffic,
    set_traffic,
    rollback,
    pin,
    unpin,
    traffic_history,
    list_changes,
    metrics,
    health,
    described,
]
