"""Carries routing snapshots to the routers, in the order of their epochs.

Concurrent publications join: one that begins while another reads the store waits for the next, which then serves all
that came meanwhile. Epochs are reserved from the store in blocks, so that they grow across restarts and kill -9.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sqlalchemy import Connection

from headrace.controlplane import changes
from headrace.controlplane.link import Hub
from headrace.controlplane.ports import Effect
from headrace.controlplane.routing_state import NOTHING, RoutingState, read
from headrace.controlplane.snapshots import Snapshots
from headrace.controlplane.store import Store
from headrace.core import snapshot
from headrace.core.specs import CatalogKey
from headrace.deploy.fleet import Fleet

Guard = Callable[[Connection], None]
ACK_TIMEOUT_S = 2.0
EPOCH_BLOCK = 10_000


class Publisher:
    """Implements `ports.Routing`.

    Args:
        draining: ids of replicas that shall get nothing new.
        leaving: versions of packs that shall get nothing new there.
        expected: ids of the routers that live, connected or not.
        guard: raises in a transaction where another control plane leads by now.
    """

    def __init__(
        self, store: Store, hub: Hub, fleet: Fleet, anonymous_tenant: str, guard: Guard = lambda _: None
    ) -> None:
        self.draining: set[str] = set()
        self.leaving: set[tuple[str, CatalogKey]] = set()
        self.expected: set[str] = set()
        self.state = NOTHING
        self._store = store
        self._hub = hub
        self._fleet = fleet
        self._guard = guard
        self._snapshots = Snapshots(anonymous_tenant)
        self._next_epoch = self._last_epoch = 0
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Future[int] | None = None

    @property
    def epoch(self) -> int:
        """Of the current snapshot."""
        return self._snapshots.current.epoch

    async def publish(self) -> Effect:
        """See `ports.Routing.publish`."""
        start = time.monotonic()
        epoch = await self._joined()
        effective = await self._hub.wait_for(self.expected | set(self._hub.routers), epoch, ACK_TIMEOUT_S)
        return Effect(epoch, effective, (time.monotonic() - start) * 1000)

    async def _joined(self) -> int:
        """Take part in the next publication; returns its epoch."""
        if self._waiting is None:
            mine = self._waiting = asyncio.get_running_loop().create_future()
            try:
                async with self._lock:
                    self._waiting = None  # whoever comes from here on may have committed after we read
                    mine.set_result(await self._publish())
            except BaseException as error:
                self._waiting = None if self._waiting is mine else self._waiting
                if not mine.done():
                    mine.set_exception(error)
                    mine.exception()  # seen here, even when nobody joined
                raise
            return self.epoch
        joined: int = await asyncio.shield(self._waiting)
        return joined

    async def _publish(self) -> int:
        if self._next_epoch >= self._last_epoch:
            self._next_epoch = await self._store.run(self._reserve)
            self._last_epoch = self._next_epoch + EPOCH_BLOCK
        self.state = await self._store.read(self._read)
        ready = [s for s in self._fleet.statuses() if s.state == "ready" and s.spec.id not in self.draining]
        before = self.epoch
        change = self._snapshots.advance(self.state, ready, self._next_epoch, self.leaving)
        if change is not None:
            self._next_epoch += 1
            encoded = snapshot.encode(change)
            for peer in self._hub.routers.values():
                if before and peer.sent == before:
                    peer.send_snapshot(encoded, change.epoch)
        self._send_whole_where_needed()
        return self.epoch

    def _reserve(self, connection: Connection) -> int:
        self._guard(connection)
        return changes.reserve_epochs(connection, EPOCH_BLOCK)

    def _read(self, connection: Connection) -> RoutingState:
        self._guard(connection)
        return read(connection, self.state)

    def _send_whole_where_needed(self) -> None:
        encoded = b""
        for peer in self._hub.routers.values():
            if peer.sent != self.epoch:
                encoded = encoded or snapshot.encode(self._snapshots.current.whole())
                peer.send_snapshot(encoded, self.epoch)
