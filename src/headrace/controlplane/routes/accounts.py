"""Tenants and API keys."""

from __future__ import annotations

from typing import Any

from litestar import Request as Http
from litestar import Response, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy import Connection

from headrace.controlplane import accounts, views
from headrace.controlplane.accounts import KeyRow
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import Platform, check_range
from headrace.controlplane.routes.asked import (
    Api,
    Cursor,
    Limit,
    State,
    Tenant,
    check_time,
    context,
    page,
    reach,
    tagged,
)
from headrace.core import resources as r
from headrace.core.errors import Conflict, InvalidInput, NotFound
from headrace.core.names import check_name

OVERLAP_MAX_S = 30 * 86_400.0
"""Seconds for which a rotated key may stay good."""
OWN_OVERLAP_MIN_S = 60.0
"""The least for the key that asks: time to put the new one into its place."""


@get("/api/v1/tenants", summary="List tenants")
async def list_tenants(
    request: Http[Any, Any, Any],
    platform: Api,
    in_state: State = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Tenant]:
    """By name. All tenants for an admin, else the caller's own; `state` is `active` or `suspended`."""
    asked = await context(request)
    found = await platform.store.read(lambda c: [t.resource() for t in reach(c, asked)])
    found = [tenant for tenant in found if in_state in (None, tenant.state)]
    return page(found, limit, cursor, lambda t: t.name, lambda t: t.name, check_name)


@post("/api/v1/tenants", summary="Create a tenant")
async def create_tenant(
    request: Http[Any, Any, Any], platform: Api, data: JSONBody[r.TenantCreate]
) -> r.Outcome[r.Tenant]:
    """Admin."""
    asked = await context(request)
    asked.principal.need("admin")
    check_name(data.name)
    check_quota(data.quota)

    def work(c: Connection) -> Record:
        if accounts.find_tenant(c, data.name) is not None:
            raise Conflict(f"tenant {data.name!r} exists", field="name")
        accounts.create_tenant(c, data.name, data.quota, data.approval)
        after = {"name": data.name, "approval": data.approval}
        return Record("tenant.create", data.name, data.name, None, after)

    return await platform.mutate(asked, work, lambda c, _: accounts.named_tenant(c, data.name).resource(), r.Tenant)


def check_quota(quota: r.Quota) -> None:
    """Raises InvalidInput for limits that no tenant could live with."""
    for field, value in (("rate_per_s", quota.rate_per_s), ("burst", quota.burst)):
        if not 0 < value <= 1e9:
            raise InvalidInput(f"quota.{field}: {value}, expected more than 0 and at most 1e9", field=f"quota.{field}")
    check_range("quota.max_in_flight", quota.max_in_flight, 1, 10_000_000)


@get("/api/v1/tenants/{name:str}", summary="Show a tenant")
async def show_tenant(request: Http[Any, Any, Any], platform: Api, name: FromPath[str]) -> Response[r.Tenant]:
    """The caller's own, or any for an admin."""
    asked = await context(request, name)
    return tagged(await platform.store.read(lambda c: Platform.tenant(c, asked).resource()))


@patch("/api/v1/tenants/{name:str}", summary="Change a tenant's quota or state")
async def update_tenant(
    request: Http[Any, Any, Any], platform: Api, name: FromPath[str], data: JSONBody[r.TenantUpdate]
) -> r.Outcome[r.Tenant]:
    """Admin."""
    asked = await context(request, None, data.reason)
    asked.principal.need("admin")
    given = {f: getattr(data, f) for f in r.Quota.__struct_fields__ if getattr(data, f) is not None}
    check_quota(r.Quota(**given))  # before If-Match: what is wrong stays so

    def work(c: Connection) -> Record:
        row = accounts.named_tenant(c, name)
        before = row.resource()
        asked.match(views.tag(before))
        if data.state == "suspended" and name == asked.principal.tenant.name:
            raise Conflict(f"tenant {name!r} is your own: you could not take it back", field="state")
        quota = r.Quota(
            before.quota.rate_per_s if data.rate_per_s is None else data.rate_per_s,
            before.quota.burst if data.burst is None else data.burst,
            before.quota.max_in_flight if data.max_in_flight is None else data.max_in_flight,
        )
        values = {"rate_per_s": quota.rate_per_s, "burst": quota.burst, "max_in_flight": quota.max_in_flight}
        after: dict[str, object] = {
            **values,
            "state": data.state or before.state,
            "approval": data.approval or before.approval,
        }
        accounts.update_tenant(c, row.index, after)
        old = before.quota
        shown = {"rate_per_s": old.rate_per_s, "burst": old.burst, "max_in_flight": old.max_in_flight}
        undo = (
            f"headrace tenants update {name} --rate {old.rate_per_s:g} --burst {old.burst:g} "
            f"--approval {before.approval}"
        )
        was = {**shown, "state": before.state, "approval": before.approval}
        return Record("tenant.update", name, name, was, after, undo)

    return await platform.mutate(asked, work, lambda c, _: accounts.named_tenant(c, name).resource(), r.Tenant)


@get("/api/v1/keys", summary="List API keys")
async def list_keys(
    request: Http[Any, Any, Any],
    platform: Api,
    role: FromQuery[str | None] = None,
    in_state: State = None,
    tenant: Tenant = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Key]:
    """Admin; never their secrets. Oldest first; `state` is `active`, `rotating` or `revoked`."""
    asked = await context(request, tenant)
    asked.principal.need("admin")

    def read(c: Connection) -> list[r.Key]:
        names = {t.index: t.name for t in reach(c, asked)}
        return [key.resource(names[key.tenant]) for key in accounts.list_keys(c) if key.tenant in names]

    found = [k for k in await platform.store.read(read) if role in (None, k.role) and in_state in (None, k.state)]
    return page(found, limit, cursor, lambda k: (k.created_at, k.id), lambda k: f"{k.created_at},{k.id}", read_key)


def read_key(cursor: str) -> tuple[str, str]:
    """The place of ``created_at,id``. Raises InvalidInput, ValueError."""
    created_at, id_ = cursor.split(",")
    return check_time(created_at, "cursor"), id_


@post("/api/v1/keys", summary="Create an API key")
async def create_key(
    request: Http[Any, Any, Any], platform: Api, data: JSONBody[r.KeyCreate]
) -> r.Outcome[r.KeyCreated]:
    """Admin. The reply is the only place where the key's text is ever shown: it is not stored, so that the same
    Idempotency-Key again is refused (409) with the id of the key that it made."""
    asked = await context(request, data.tenant)
    asked.principal.need("admin")
    if len(data.label) > 200:
        raise InvalidInput("label: longer than 200 characters", field="label")
    if len(data.account) > 100:
        raise InvalidInput("account: longer than 100 characters", field="account")
    made: list[tuple[KeyRow, str]] = []

    def work(c: Connection) -> Record:
        tenant = Platform.tenant(c, asked)
        made.append(accounts.create_key(c, tenant.index, data.role, data.label, data.account))
        row = made[-1][0]
        after = {"id": row.id, "role": row.role}
        return Record("key.create", tenant.name, row.id, None, after, f"headrace keys revoke {row.id}")

    def show(c: Connection, record: Record) -> r.KeyCreated:
        row, text = made[-1]
        return r.KeyCreated(row.resource(record.tenant), text)

    return await platform.mutate(asked, work, show, r.KeyCreated, secret=True)


@get("/api/v1/keys/{id_:str}", summary="Show an API key")
async def show_key(request: Http[Any, Any, Any], platform: Api, id_: FromPath[str]) -> Response[r.Key]:
    """Admin; never its secret. `self` is the key that asks, of whatever role."""
    asked = await context(request)
    wanted = asked.principal.key if id_ == "self" else id_
    if wanted != asked.principal.key:
        asked.principal.need("admin")
    return tagged(await platform.store.read(lambda c: one_key(c, wanted)))


def one_key(c: Connection, id_: str) -> r.Key:
    """A key as the API shows it. Raises NotFound."""
    row = accounts.find_key(c, id_)
    if row is None:
        raise NotFound(f"key {id_!r} does not exist", field="id")
    return row.resource(accounts.find_tenants(c, [row.tenant])[row.tenant].name)


@delete("/api/v1/keys/{id_:str}", status_code=200, summary="Revoke an API key")
async def revoke_key(request: Http[Any, Any, Any], platform: Api, id_: FromPath[str]) -> r.Outcome[r.Key]:
    """Admin. In effect on every router when this answers with `effective`."""
    asked = await context(request)
    asked.principal.need("admin")

    def work(c: Connection) -> Record:
        if id_ == asked.principal.key:
            raise Conflict("a key cannot revoke itself", field="id")
        key = one_key(c, id_)
        accounts.revoke_key(c, id_)
        return Record("key.revoke", key.tenant, id_, {"state": key.state}, {"state": "revoked"})

    return await platform.mutate(asked, work, lambda c, _: one_key(c, id_), r.Key)


@post("/api/v1/keys/{id_:str}/rotate", summary="Rotate an API key")
async def rotate_key(
    request: Http[Any, Any, Any], platform: Api, id_: FromPath[str], data: JSONBody[r.KeyRotate]
) -> r.Outcome[r.KeyCreated]:
    """Admin. Another key of the same holder, tenant and role, good at once; the old one stays so for `overlap_s` and
    shows as `rotating`. As with a new key, the reply is the only place where its text is shown."""
    asked = await context(request, None, data.reason)
    asked.principal.need("admin")
    if not 0 <= data.overlap_s <= OVERLAP_MAX_S:
        text = f"overlap_s: {data.overlap_s:g}, expected 0 to {OVERLAP_MAX_S:g} seconds"
        raise InvalidInput(text, field="overlap_s")
    made: list[tuple[KeyRow, str]] = []

    def work(c: Connection) -> Record:
        if id_ == asked.principal.key and data.overlap_s < OWN_OVERLAP_MIN_S:
            hint = f"give it {OWN_OVERLAP_MIN_S:g} seconds or more"
            raise Conflict("a key cannot end itself at once", field="overlap_s", hint=hint)
        old = one_key(c, id_)
        if old.state != "active":
            hint = "headrace keys create" if old.state == "revoked" else f"it ends at {old.expires_at}"
            raise Conflict(f"key {id_} is {old.state}", field="id", hint=hint)
        made.append(accounts.rotate_key(c, accounts.find_keys(c, [id_])[id_], data.overlap_s))
        left = one_key(c, id_)
        before, after = {"key": id_, "state": old.state}, {"key": id_, "state": left.state, "until": left.expires_at}
        return Record("key.rotate", old.tenant, made[-1][0].id, before, after)

    def show(c: Connection, record: Record) -> r.KeyCreated:
        row, text = made[-1]
        return r.KeyCreated(row.resource(record.tenant), text)

    return await platform.mutate(asked, work, show, r.KeyCreated, secret=True)


HANDLERS = [
    list_tenants,
    create_tenant,
    show_tenant,
    update_tenant,
    list_keys,
    create_key,
    show_key,
    rotate_key,
    revoke_key,
]
