"""What all connections of a router process share: the table, admission, telemetry, sweeps."""

from __future__ import annotations

import math
import mmap
import os
import time
from typing import TYPE_CHECKING

import msgspec

from headrace.core import telemetry
from headrace.core.handshake import replica_key
from headrace.core.report import RequestCell, RouterReport
from headrace.core.specs import RouterSpec
from headrace.router.guard import Guards
from headrace.router.link import Arm, ReplicaLink, Tenant
from headrace.router.table import Table

if TYPE_CHECKING:
    from headrace.core.peer import ControlPeer
    from headrace.router.http import Http

QUOTA_SLOTS = 65_536
SWEEP_S = 0.02
TRIM_S = 0.1
monotonic = time.monotonic


class Router:
    """State of one router process."""

    def __init__(self, spec: RouterSpec, peer: ControlPeer | None = None) -> None:
        self.spec = spec
        self.peer = peer
        self.guards = Guards()
        secret = bytes.fromhex(spec.secret)

        def link(replica: str, address: str) -> ReplicaLink:
            return ReplicaLink(replica, address, self.guards, replica_key(secret, replica) if secret else b"")

        self.table = Table(link, self.guards)
        self.connections: set[Http] = set()
        self.draining = False
        self.arrivals = open_quota(spec.quota_path)
        self.unrouted: dict[tuple[int, int], int] = {}
        """(tenant or -1, HTTP status) -> answers before a model was known, since the last report."""

    def admit(self, tenant: Tenant, now: float) -> bool:
        """GCRA: may one more request of the tenant come at `now`? The arrival time is shared by the host's routers;
        a race between two of them lets at most one request more through each."""
        arrivals = self.arrivals
        arrival = arrivals[tenant.index]
        if arrival < now:
            arrival = now
        elif arrival - now > tenant.burst_s:
            return False
        if tenant.burst_s < 0:
            return False
        arrivals[tenant.index] = arrival + tenant.interval_s
        return True

    def refusal(self, tenant: Tenant, now: float) -> tuple[int, str, int | None]:
        """Why `admit` said no: HTTP status, message, whole seconds after which it would say yes."""
        if tenant.burst_s < 0:
            return 403, f"the tenant {tenant.name} is suspended", None
        wait_s = self.arrivals[tenant.index] - now - tenant.burst_s
        message = f"the request rate of tenant {tenant.name} is used up: {1 / tenant.interval_s:g} a second"
        return 429, message, max(math.ceil(wait_s), 1)

    def count(self, tenant: int, status: int) -> None:
        """Count an answer that no version gave."""
        key = (tenant, status)
        self.unrouted[key] = self.unrouted.get(key, 0) + 1

    def sweep(self, now: float) -> None:
        """Expire and cancel what is late or wanted by nobody."""
        table = self.table
        for link in table.links.values():
            if link.waiting:
                link.sweep(now)
        if table.retired:
            for link in table.retired:
                link.sweep(now)
            table.retired = [link for link in table.retired if link.waiting]
        self.guards.sweep(now)

    def trim(self) -> None:
        """Fold the durations that have come, where they are many."""
        for arm in self.table.arms:
            for cell in arm.cells.values():
                cell.trim()

    def sweep_connections(self, now: float) -> None:
        """Close connections that send too slowly or nothing."""
        for connection in list(self.connections):
            connection.sweep(now)

    def report(self) -> bytes:
        """Counts since the last report, as the control plane reads them."""
        cells = []
        for arm in self.table.arms:
            told = arm_cells(arm)
            cells += told
            if not told:
                self.table.forget_unrouted(arm)
        for (tenant, status), count in self.unrouted.items():
            cells.append(RequestCell("", 0, tenant, telemetry.fold([]), {status: count}))
        self.unrouted = {}
        links = self.table.links.values()
        retries, ejections = sum(link.retries for link in links), sum(link.ejections for link in links)
        for link in links:
            link.retries = link.ejections = 0
        return msgspec.msgpack.encode(
            RouterReport(
                self.spec.id,
                self.table.snapshot.epoch,
                tuple(cells),
                sum(len(link.waiting) for link in links),
                len(self.connections),
                retries,
                ejections,
                telemetry.rss_bytes(),
                self.guards.condemned(),
            )
        )


def arm_cells(arm: Arm) -> list[RequestCell]:
    """An arm's counts since the last report, taken."""
    tenants = {tenant for tenant, cell in arm.cells.items() if not cell.empty} | {tenant for tenant, _ in arm.errors}
    cells = []
    for tenant in tenants:
        errors = {status: n for (t, status), n in arm.errors.items() if t == tenant}
        cells.append(RequestCell(arm.model, arm.version, tenant, arm.cell(tenant).take(), errors))
    arm.errors = {}
    return cells


def open_quota(path: str) -> memoryview[float]:
    """The host's shared arrival times, one float64 a tenant; private to the process where `path` is empty."""
    size = QUOTA_SLOTS * 8
    if not path:
        return memoryview(mmap.mmap(-1, size)).cast("d")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        return memoryview(mmap.mmap(fd, size)).cast("d")
    finally:
        os.close(fd)
