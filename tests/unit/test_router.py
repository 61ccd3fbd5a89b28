"""A router's housekeeping: what has left the snapshot is seen to, and then forgotten."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from headrace.core.snapshot import SLOTS, Endpoint, ModelRoute, ReplicaRoute, Slots, Snapshot, TenantRoute, VersionRoute
from headrace.core.specs import RouterSpec
from headrace.router.core import Router
from tests.unit.test_guard import Caller


def model(*versions: VersionRoute) -> ModelRoute:
    split = (Slots(SLOTS, 1),) if versions else ()
    return ModelRoute("default/m", "m", 0, (), versions, 1, split, (), b"salt")


async def housekeeping(folder: Path) -> None:
    address = f"unix:{folder}/r"
    silent = await asyncio.get_running_loop().create_unix_server(asyncio.Protocol, f"{folder}/r")
    router = Router(RouterSpec("router", "127.0.0.1", 0, "", "", ""))
    table = router.table
    routed = model(VersionRoute(1, (Endpoint("r", 0),), "onnx", b"{}"))
    tenant = TenantRoute(0, "default", 1e9, 1e9, 100)
    table.update(Snapshot(1, 0, (tenant,), replicas=(ReplicaRoute("r", address),), models=(routed,)))
    (arm,), link, caller = table.arms, table.links["r"], Caller()
    await asyncio.wait_for(link.connected.wait(), 5.0)
    now, payer = time.monotonic(), table.tenants[0]
    payer.in_flight += 1
    link.send(caller, 0, arm.cell(0), payer, now, now + 60.0, arm, 0, b"\x90", [b"{}"], 2, 0)

    table.update(Snapshot(2, 1, models=(model(),), removed_replicas=("r",)))
    router.report()
    assert table.arms == [arm]  # somebody waits for it still

    router.sweep(now + 61.0)  # its replica has left the snapshot, the deadline holds all the same
    assert (caller.told[0][0], payer.in_flight) == (504, 0)
    assert not table.retired
    assert arm.errors
    router.report()
    assert table.arms == [arm]  # it had something to tell
    router.guards.of(arm)
    router.report()
    assert table.arms == [arm]  # what its guard holds waits for the next replica
    arm.guard = None
    router.report()
    assert table.arms == []
    link.transport.abort()
    silent.close()
    await silent.wait_closed()


def test_deadlines_hold_on_links_that_are_retired_and_versions_are_forgotten(tmp_path: Path) -> None:
    asyncio.run(housekeeping(tmp_path))
