"""Inputs that have killed replicas, and are refused."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request as Http
from litestar import delete, get
from litestar.params import FromPath, FromQuery, QueryParameter

from headrace.controlplane import quarantine, quarantine_store
from headrace.controlplane.routes.asked import Api, Cursor, Limit, Tenant, context, page, reach, read_deployment
from headrace.controlplane.routes.deployments import split_reference
from headrace.core import resources as r

Digest = Annotated[
    str | None, QueryParameter(name="input", description="Its digest, or how that begins; all when left out.")
]

DIGEST_DIGITS = 32


def place(one: r.Quarantined) -> tuple[str, str, int, str]:
    """What the list is sorted by."""
    return one.tenant, one.model, one.version, one.digest


def read_place(cursor: str) -> tuple[str, str, int, str]:
    """The place of ``tenant/model@version/digest``. Raises ValueError."""
    reference, _, digest = cursor.rpartition("/")
    if len(digest) != DIGEST_DIGITS:
        raise ValueError(cursor)
    return *read_deployment(reference), digest


@get("/api/v1/quarantine", summary="List inputs in quarantine")
async def list_quarantined(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromQuery[str | None] = None,
    tenant: Tenant = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Quarantined]:
    """By tenant, model and version."""
    asked = await context(request, tenant)
    found = await platform.store.run(lambda c: quarantine_store.shown(c, reach(c, asked), model))
    return page(found, limit, cursor, place, lambda q: f"{q.tenant}/{q.model}@{q.version}/{q.digest}", read_place)


@delete("/api/v1/quarantine/{reference:str}", status_code=200, summary="Lift a quarantine")
async def lift(
    request: Http[Any, Any, Any],
    platform: Api,
    reference: FromPath[str],
    digest: Digest = None,
    reason: FromQuery[str | None] = None,
    tenant: Tenant = None,
) -> r.Outcome[r.Page[r.Quarantined]]:
    """Operator. ``churn@4``; the result is what is left of it."""
    model, version = split_reference(reference)
    return await quarantine.lift(platform, await context(request, tenant, reason), model, version, digest)


HANDLERS = [list_quarantined, lift]
