"""What all handlers share: who asks and for what, pages of lists, entity tags."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Protocol, TypeVar
from urllib.parse import unquote

import msgspec
from litestar import Request as Http
from litestar import Response
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter
from sqlalchemy import Connection

from headrace.controlplane import accounts, views
from headrace.controlplane.platform import Platform, Request
from headrace.core import resources as r
from headrace.core.errors import HeadraceError, InvalidInput
from headrace.core.names import parse_reference

LIMIT_MAX = 1000
Api = NamedDependency[Platform]
Tenant = Annotated[str | None, QueryParameter(description="Another tenant whose resources are meant (admins).")]
Limit = Annotated[int, QueryParameter(ge=1, le=LIMIT_MAX, description="Most items on the page.")]
Cursor = Annotated[str | None, QueryParameter(description="`next` of the page before.")]
State = Annotated[str | None, QueryParameter(name="state", description="Only those in this state.")]
Force = Annotated[bool, QueryParameter(description="Even while it has traffic: its requests are then refused (503).")]
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class Ordered(Protocol):
    """What lists are sorted by."""

    def __lt__(self, other: Any, /) -> bool: ...


K = TypeVar("K", bound=Ordered)


async def authenticate(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard of every route but those that say `public`: runs before anything of the asked is decoded."""
    if not handler.opt.get("public"):
        platform: Platform = connection.app.state.platform
        connection.state.principal = await platform.authenticate(connection.headers.get("authorization"))


async def context(request: Http[Any, Any, Any], tenant: str | None = None, reason: str | None = None) -> Request:
    """Who asks, for whom, why, on which condition, and whether it may be asked again."""
    key = request.headers.get("idempotency-key")
    reason = reason or unquote(request.headers.get("x-reason", "")) or None
    conditions = request.headers.get("if-match"), request.headers.get("if-none-match")
    if key is None:
        return Request(request.state.principal, tenant, reason, None, b"", *conditions)
    if not 1 <= len(key) <= 200:
        raise InvalidInput("idempotency-key: expected 1 to 200 characters", field="idempotency-key")
    whole = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode() + await request.body())
    return Request(request.state.principal, tenant, reason, key, whole.digest(), *conditions)


def reach(c: Connection, asked: Request) -> list[accounts.TenantRow]:
    """The tenants whose resources a list shows: the one named, all for an admin, else the caller's own."""
    if asked.tenant is None and asked.principal.role == "admin":
        return accounts.list_tenants(c)
    return [Platform.tenant(c, asked)]


def tagged(resource: S) -> Response[S]:
    """A resource with its ETag."""
    return Response(resource, headers={"etag": f'"{views.tag(resource)}"'})


def page(
    items: Iterable[T],
    limit: int,
    cursor: str | None,
    place: Callable[[T], K],
    write: Callable[[T], str],
    read: Callable[[str], K],
) -> r.Page[T]:
    """A page of a list.

    Args:
        items: all of the list, in any order.
        limit: most items of the page.
        cursor: of the page before; None for the first.
        place: what the list is sorted by; no two items share one.
        write: an item as a cursor: the next page begins after it.
        read: a cursor's place. Raises an error of ours, ValueError or TypeError for what was never written.
    """
    found = sorted(items, key=place)
    if cursor is not None:
        try:
            after = read(cursor)
        except (HeadraceError, ValueError, TypeError):
            raise InvalidInput(f"cursor: {cursor[:40]!r} is none of ours", field="cursor") from None
        found = [item for item in found if after < place(item)]
    return r.Page(found[:limit], write(found[limit - 1]) if len(found) > limit else None)


def read_number(cursor: str) -> int:
    """A cursor that is a number. Raises ValueError."""
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise ValueError(cursor)
    return int(cursor)


def read_model(cursor: str) -> tuple[str, str]:
    """The place of ``tenant/model``. Raises InvalidInput, ValueError."""
    found = parse_reference(cursor)
    if found.tenant is None or found.version is not None:
        raise ValueError(cursor)
    return found.tenant, found.model


def read_deployment(cursor: str) -> tuple[str, str, int]:
    """The place of ``tenant/model@version``. Raises InvalidInput, ValueError."""
    found = parse_reference(cursor)
    if found.tenant is None or not isinstance(found.version, int):
        raise ValueError(cursor)
    return found.tenant, found.model, found.version


def has_tag(tags: dict[str, str], wanted: str | None) -> bool:
    """Whether tags have `wanted`: ``name`` or ``name=value``."""
    name, given, value = (wanted or "").partition("=")
    return wanted is None or (name in tags and (not given or tags[name] == value))


def check_time(text: str, field: str) -> str:
    """A time as the store writes it. Raises InvalidInput unless it is RFC 3339 with an offset."""
    try:
        at = msgspec.convert(text, datetime.datetime)
        if at.tzinfo is None:
            raise ValueError
        return at.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise InvalidInput(f"{field}: {text[:40]!r}, expected a time like 2026-01-31T08:00:00Z", field=field) from None
