"""The fleet's devices, and what the optimiser would do with what is on them."""

from __future__ import annotations

from typing import Any

from litestar import Request as Http
from litestar import get

from headrace.controlplane.routes.asked import Api, Cursor, Limit, context, page
from headrace.core import resources as r
from headrace.core.names import DEVICE


@get("/api/v1/devices", summary="List the fleet's devices")
async def list_devices(
    request: Http[Any, Any, Any], platform: Api, limit: Limit = 100, cursor: Cursor = None
) -> r.Page[r.DeviceStatus]:
    """By id, with what replicas take of each."""
    await context(request)
    return page(platform.fleet.devices(), limit, cursor, lambda d: d.id, lambda d: d.id, read_device)


@get("/api/v1/placement", summary="What the placement optimiser found")
async def placement(request: Http[Any, Any, Any], platform: Api) -> r.PlacementPlan:
    """Operator. The moves that are still to be made, and what they save."""
    (await context(request)).principal.need("operator")
    return platform.fleet.placement()


def read_device(cursor: str) -> str:
    """A cursor that is a device's id. Raises ValueError."""
    if not DEVICE.fullmatch(cursor):
        raise ValueError(cursor)
    return cursor


HANDLERS = [list_devices, placement]
