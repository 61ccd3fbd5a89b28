"""The audit's hash chain."""

from __future__ import annotations

from typing import Any

from litestar import Request as Http
from litestar import get
from litestar.params import FromQuery

from headrace.controlplane import audit
from headrace.controlplane.routes.asked import Api, check_time, context
from headrace.core import resources as r


@get("/api/v1/audit/head", summary="The last row of the audit's chain")
async def audit_head(request: Http[Any, Any, Any], platform: Api) -> r.AuditHead:
    """Admin. Kept elsewhere, it is an anchor: whether all up to it is still as it was can then be told for certain."""
    asked = await context(request)
    asked.principal.need("admin")
    return await platform.store.run(audit.head)


@get("/api/v1/audit/verify", summary="Verify the audit's chain")
async def verify_audit(
    request: Http[Any, Any, Any],
    platform: Api,
    since: FromQuery[str | None] = None,
    anchor: FromQuery[str | None] = None,
) -> r.AuditCheck:
    """Admin. Computes every hash again, of all tenants' changes; names the first row that does not fit. `since` begins
    at a time and believes the row before it; `anchor` is ``CHANGE:HASH`` that must still be there."""
    asked = await context(request)
    asked.principal.need("admin")
    return await audit.verify(platform, None if since is None else check_time(since, "since"), anchor)


HANDLERS = [audit_head, verify_audit]
