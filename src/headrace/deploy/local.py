"""The `local` fleet: replicas are processes of this machine's node agent. And the client of any agent that speaks
`wire`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec

from headrace.core.devices import Device
from headrace.core.specs import CatalogOrder, ReplicaSpec, ReplicaStatus
from headrace.deploy.wire import NodeCommand, NodeState, ZygoteStatus

log = logging.getLogger("headrace.deploy.local")
RECONNECT_S = 0.1
LINE_MAX = 64 << 20


class LocalFleet:
    """Client of an agent. Implements `fleet.Fleet`."""

    def __init__(self, address: str) -> None:
        self._path = address.removeprefix("unix:")
        self._state: NodeState | None = None
        self._changed: list[Callable[[], None]] = []
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._known = asyncio.Event()
        self._leader, self._token = "", 0
        self.connected = False
        """Whether what is known is how things are now."""

    async def open(self, leader: str = "", token: int = 0) -> None:
        """Connect, and wait for the first look at what runs.

        Args:
            leader: name of this control plane among the node's.
            token: its fencing token; the node then obeys nobody with a lower one.
        """
        self._leader, self._token = leader, token
        self._task = asyncio.get_running_loop().create_task(self._follow())
        await self._known.wait()

    async def close(self) -> None:
        """Disconnect; what runs goes on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._writer is not None:
            self._writer.close()

    @property
    def routers(self) -> list[str]:
        """Ids of the routers that run on the node."""
        return self._state.routers if self._state is not None else []

    @property
    def zygotes(self) -> list[ZygoteStatus]:
        """What the node forks replicas from."""
        return self._state.zygotes if self._state is not None else []

    @property
    def holding(self) -> str:
        """See `Fleet.holding`."""
        return self._state.holding if self._state is not None else ""

    async def start(self, spec: ReplicaSpec) -> None:
        """See `Fleet.start`."""
        await self._send(NodeCommand("start", spec.id, spec, self._token))

    async def stop(self, replica: str) -> None:
        """See `Fleet.stop`."""
        await self._send(NodeCommand("stop", replica, token=self._token))

    async def forget(self, replica: str) -> None:
        """See `Fleet.forget`."""
        await self._send(NodeCommand("forget", replica, token=self._token))

    async def catalog(self, pack: str, order: CatalogOrder) -> None:
        """See `Fleet.catalog`."""
        await self._send(NodeCommand("catalog", pack, token=self._token, catalog=order))

    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """See `Fleet.statuses`."""
        return tuple(self._state.replicas) if self._state is not None else ()

    def devices(self) -> tuple[Device, ...]:
        """See `Fleet.devices`."""
        return self._state.devices if self._state is not None else ()

    def watch(self, changed: Callable[[], None]) -> None:
        """See `Fleet.watch`."""
        self._changed.append(changed)

    async def _send(self, command: NodeCommand) -> None:
        """A command that does not arrive is no loss: the next tick sees that it was not done."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(command) + b"\n")
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()

    async def _follow(self) -> None:
        decode = msgspec.json.Decoder(NodeState).decode
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._path, limit=LINE_MAX)
                if self._token:
                    await self._send(NodeCommand("lead", self._leader, token=self._token))
                while line := await reader.readline():
                    self._state = decode(line)
                    self._known.set()
                    self.connected = True
                    for changed in self._changed:
                        changed()
            except OSError:
                pass
            except (ValueError, msgspec.MsgspecError) as error:
                log.error("the node says what makes no sense: %s", error)
            if self._writer is not None:
                self._writer.close()
            if self.connected:
                self.connected = False
                for changed in self._changed:
                    changed()
            await asyncio.sleep(RECONNECT_S)
