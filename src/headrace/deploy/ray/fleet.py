"""The `ray` fleet as a control plane has it: what the agent says of Ray, and what the replicas say themselves.

Replicas report to the control plane over connections of their own, so that it need not believe Ray alone:

- one whose connection has been gone for a while counts no more (`stuck`), long before Ray says that its node is dead:
  another is started elsewhere. Should it come back, it counts again, and the surplus is stopped;
- one whose actor is lost, and that is still connected, serves on (`lost`) until another is ready in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from headrace.core.devices import Device
from headrace.core.specs import CatalogOrder, ReplicaSpec, ReplicaStatus
from headrace.deploy.local import LocalFleet
from headrace.deploy.wire import ZygoteStatus

SILENT_S = 3.0
"""A replica that has had no connection to us for so long is taken for gone."""
STRAY_S = 30.0
"""A replica that is connected to us and that Ray's agent has not known for so long is told to leave."""


class Replicas(Protocol):
    """The replicas' own connections: the control plane's hub."""

    @property
    def connected(self) -> frozenset[str]:
        """Ids of those that are connected."""

    def stop_replica(self, replica: str) -> None:
        """Tell one to drain and leave."""


class RayFleet:
    """Implements `fleet.Fleet`.

    Args:
        node: this machine's agent, which runs the routers.
        agent: the process that speaks with Ray.
        replicas: their connections.
        clock: monotonic seconds.
    """

    def __init__(
        self, node: LocalFleet, agent: LocalFleet, replicas: Replicas, clock: Callable[[], float] | None = None
    ) -> None:
        self._node = node
        self._agent = agent
        self._replicas = replicas
        self._clock = clock or asyncio.get_running_loop().time
        self._changed: list[Callable[[], None]] = []
        self._seen: dict[str, float] = {}
        """Replica -> when it was last connected, or first known."""
        self._strays: dict[str, float] = {}

    async def open(self, leader: str = "", token: int = 0) -> None:
        """See `LocalFleet.open`; the token goes to both."""
        await self._node.open(leader, token)
        await self._agent.open(leader, token)

    async def close(self) -> None:
        """Disconnect; what runs goes on."""
        await self._node.close()
        await self._agent.close()

    @property
    def routers(self) -> list[str]:
        """See `Fleet.routers`."""
        return self._node.routers

    @property
    def holding(self) -> str:
        """See `Fleet.holding`."""
        return self._agent.holding if self._agent.connected else "the process that speaks with Ray is being started"

    @property
    def zygotes(self) -> list[ZygoteStatus]:
        """What this machine's agent forks replicas from: none of Ray's."""
        return self._node.zygotes

    def devices(self) -> tuple[Device, ...]:
        """Processors and accelerators of the nodes that live."""
        return self._agent.devices()

    async def start(self, spec: ReplicaSpec) -> None:
        """See `Fleet.start`. Shared processes run on this machine: their catalogs change too often for Ray's calls."""
        await (self._agent if spec.pack is None else self._node).start(spec)

    async def catalog(self, pack: str, order: CatalogOrder) -> None:
        """See `Fleet.catalog`."""
        await self._node.catalog(pack, order)

    async def stop(self, replica: str) -> None:
        """See `Fleet.stop`."""
        await self._agent.stop(replica)
        await self._node.stop(replica)
        status = next((one for one in self._agent.statuses() if one.spec.id == replica), None)
        if status is not None and status.lost:
            self._replicas.stop_replica(replica)

    async def forget(self, replica: str) -> None:
        """See `Fleet.forget`."""
        await self._agent.forget(replica)
        await self._node.forget(replica)

    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """See `Fleet.statuses`."""
        now, connected = self._clock(), self._replicas.connected
        known = self._agent.statuses()
        packs = self._node.statuses()
        ids = {status.spec.id for status in known}
        self._seen = {id_: now if id_ in connected else self._seen.get(id_, now) for id_ in ids}
        self._send_strays_away(connected - ids - {pack.spec.id for pack in packs}, now)
        judged = [self._judged(one, one.spec.id in connected, now - self._seen[one.spec.id]) for one in known]
        return (*packs, *judged)

    @staticmethod
    def _judged(status: ReplicaStatus, connected: bool, silent_s: float) -> ReplicaStatus:
        if status.lost and connected:
            detail = f"serves on until another is ready; {status.detail}"
            state = "draining" if status.state == "stopped" else "ready"
            return msgspec.structs.replace(status, state=state, detail=detail)
        if status.state == "ready" and silent_s > SILENT_S:
            return msgspec.structs.replace(status, stuck=True, detail=f"not heard of for more than {SILENT_S:g} s")
        return status

    def _send_strays_away(self, strays: frozenset[str], now: float) -> None:
        """Nobody would ever route to them, nor stop them."""
        if self.holding:
            strays = frozenset()
        self._strays = {id_: self._strays.get(id_, now) for id_ in strays}
        for id_, since in self._strays.items():
            if now - since > STRAY_S:
                self._replicas.stop_replica(id_)

    def watch(self, changed: Callable[[], None]) -> None:
        """See `Fleet.watch`."""
        self._changed.append(changed)
        self._node.watch(changed)
        self._agent.watch(changed)

    def connection(self, _: str) -> None:
        """A replica has connected or gone."""
        for changed in self._changed:
            changed()
