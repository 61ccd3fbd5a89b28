"""Builds routing snapshots from the store and the fleet, and carries them to the routers.

Concurrent publications join: one that begins while another reads the store waits for the next, which then serves all
that came meanwhile. Epochs are reserved from the store in blocks, so that they grow across restarts and kill -9.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import msgspec

from headrace.controlplane import changes
from headrace.controlplane.link import Hub
from headrace.controlplane.ports import Effect
from headrace.controlplane.routing_state import Reader, RoutingState
from headrace.controlplane.store import Store
from headrace.core import snapshot
from headrace.core.snapshot import Endpoint, KeyRoute, ModelRoute, Override, ReplicaRoute, TenantRoute, VersionRoute
from headrace.core.specs import ReplicaStatus
from headrace.deploy.fleet import Fleet
from headrace.registry.store import VersionRow

ACK_TIMEOUT_S = 2.0
EPOCH_BLOCK = 10_000


class Publisher:
    """Implements `ports.Routing`.

    Args:
        draining: ids of replicas that shall get nothing new.
        expected: ids of the routers that live, connected or not.
    """

    def __init__(self, store: Store, hub: Hub, fleet: Fleet, anonymous_tenant: str) -> None:
        self.draining: set[str] = set()
        self.expected: set[str] = set()
        self.state: RoutingState | None = None
        self._store = store
        self._hub = hub
        self._fleet = fleet
        self._anonymous = anonymous_tenant
        self._reader = Reader()
        self._current = snapshot.Snapshot(0, 0)
        self._next_epoch = self._last_epoch = 0
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Future[int] | None = None
        self._metadata: dict[tuple[int, int], bytes] = {}

    @property
    def epoch(self) -> int:
        """Of the current snapshot."""
        return self._current.epoch

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
            return self._current.epoch
        joined: int = await asyncio.shield(self._waiting)
        return joined

    async def _publish(self) -> int:
        if self._next_epoch >= self._last_epoch:
            self._next_epoch = await self._store.run(lambda c: changes.reserve_epochs(c, EPOCH_BLOCK))
            self._last_epoch = self._next_epoch + EPOCH_BLOCK
        self.state = await self._store.run(self._reader)
        new = self._build(self.state, self._next_epoch)
        change = snapshot.difference(self._current, new)
        nothing = snapshot.Snapshot(change.epoch, change.base, anonymous_tenant=change.anonymous_tenant)
        if self._current.epoch and change == nothing:
            self._send_whole_where_needed()
            return self._current.epoch
        self._next_epoch += 1
        before, self._current = self._current, new
        encoded = snapshot.encode(change)
        for peer in self._hub.routers.values():
            if before.epoch and peer.sent == before.epoch:
                peer.send_snapshot(encoded, new.epoch)
        self._send_whole_where_needed()
        return new.epoch

    def _send_whole_where_needed(self) -> None:
        encoded = b""
        for peer in self._hub.routers.values():
            if peer.sent != self._current.epoch and self._current.epoch:
                encoded = encoded or snapshot.encode(self._current)
                peer.send_snapshot(encoded, self._current.epoch)

    def _build(self, state: RoutingState, epoch: int) -> snapshot.Snapshot:
        ready = [s for s in self._fleet.statuses() if s.state == "ready" and s.spec.id not in self.draining]
        endpoints = endpoints_of(ready)
        anonymous = next((t.index for t in state.tenants.values() if t.name == self._anonymous), -1)
        ids = {model: state.id_of(model) for model in state.models}
        deployed: dict[int, list[VersionRoute]] = {}
        for one in sorted(state.desired, key=lambda d: d.version):
            row = state.versions[one.model, one.version]
            where = tuple(endpoints.get((ids[one.model], one.version), ()))
            route = VersionRoute(one.version, where, row.engine, self._describe(row))
            deployed.setdefault(one.model, []).append(route)
        models = []
        for model in state.models.values():
            policy = state.policies.get(model.id)
            models.append(
                ModelRoute(
                    ids[model.id],
                    model.name,
                    model.tenant,
                    tuple(state.grants.get(model.id, ())),
                    tuple(deployed.get(model.id, ())),
                    policy[0].epoch if policy else 0,
                    policy[0].split if policy else (),
                    tuple(Override(t, v) for t, v in sorted(state.overrides.get(model.id, {}).items())),
                    model.salt,
                    model.idempotent,
                    model.timeout_s,
                    model.body_max_bytes,
                )
            )
        return snapshot.Snapshot(
            epoch,
            0,
            tuple(
                TenantRoute(t.index, t.name, t.rate_per_s if t.state == "active" else 0.0, t.burst, t.max_in_flight)
                for t in state.tenants.values()
            ),
            tuple(KeyRoute(k.digest, k.tenant, k.role) for k in state.keys),
            tuple(ReplicaRoute(s.spec.id, s.spec.address) for s in ready),
            tuple(models),
            anonymous_tenant=anonymous,
        )

    def _describe(self, version: VersionRow) -> bytes:
        """The OIP metadata's inputs and outputs, made once per version."""
        key = (version.model, version.version)
        if key not in self._metadata:
            self._metadata[key] = msgspec.json.encode(version.signature)
        return self._metadata[key]


def endpoints_of(ready: Iterable[ReplicaStatus]) -> dict[tuple[str, int], list[Endpoint]]:
    """(``tenant/name``, version) -> where it is served."""
    found: dict[tuple[str, int], list[Endpoint]] = {}
    for status in ready:
        for served in status.spec.versions:
            found.setdefault((served.model, served.version), []).append(Endpoint(status.spec.id, served.slot))
    return found
