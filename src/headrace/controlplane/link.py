"""The control plane's end of its Unix socket: routers and replicas connect to it; and of a TCP port, where replicas of
other machines do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import msgspec

from headrace.core import frames
from headrace.core.addresses import Listener
from headrace.core.handshake import replica_key
from headrace.core.report import Command, CommandReply, Hello, ReplicaReport, RouterReport

log = logging.getLogger("headrace.controlplane.link")
Reports = Callable[[RouterReport | ReplicaReport], None]
Commands = Callable[[Command], Awaitable[CommandReply]]


class Hub:
    """All connected routers and replicas.

    Args:
        on_report: receives every report.
        on_command: does what a router asks for.
        on_router: called when a router has connected or gone.
        on_replica: called when a replica has.
    """

    def __init__(
        self,
        on_report: Reports,
        on_command: Commands,
        on_router: Callable[[], None],
        on_replica: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.routers: dict[str, Peer] = {}
        self.replicas: dict[str, Peer] = {}
        self.on_report = on_report
        self.on_command = on_command
        self.on_router = on_router
        self.on_replica = on_replica
        self.tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[Listener] = []
        self._acknowledged = asyncio.Event()

    async def listen(self, address: str, secret: bytes = b"") -> None:
        """Accept connections; on TCP of replicas alone, each under its own name. Raises OSError.

        Args:
            address: ``unix:/path`` or ``tcp:host:port``.
            secret: the cluster's, on TCP.
        """
        listener = Listener(lambda name: Peer(self, name), "reports", lambda name: replica_key(secret, name))
        await listener.open(address, shared=True)
        self._listeners.append(listener)

    @property
    def connected(self) -> frozenset[str]:
        """Ids of the replicas that are connected."""
        return frozenset(self.replicas)

    def stop_replica(self, replica: str) -> None:
        """Tell a replica to drain and leave, where it is connected."""
        if replica in self.replicas:
            self.replicas[replica].transport.write(frames.frame(frames.GOAWAY))

    def close(self) -> None:
        """Accept nothing more."""
        for listener in self._listeners:
            listener.close()

    def acknowledged(self) -> None:
        """A router has moved on."""
        self._acknowledged.set()

    async def wait_for(self, routers: set[str], epoch: int, timeout_s: float) -> bool:
        """Wait until all `routers` serve by `epoch` or a later one; False when the time is over before."""
        end = asyncio.get_running_loop().time() + timeout_s
        while not all(name in self.routers and self.routers[name].epoch >= epoch for name in routers):
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            self._acknowledged.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._acknowledged.wait(), left)
        return True


class Peer(frames.FrameProtocol):
    """One connection.

    Args:
        replica: the only one that it may be of, as it has proved; empty: anybody's who can open our socket.
    """

    FRAME_MAX = 64 << 20

    def __init__(self, hub: Hub, replica: str = "") -> None:
        super().__init__()
        self.hub = hub
        self.replica = replica
        self.hello: Hello | None = None
        self.epoch = 0
        """What it serves by."""
        self.sent = 0
        """The epoch of the last snapshot sent; 0: it needs a whole one."""

    def send_snapshot(self, encoded: bytes, epoch: int) -> None:
        """Send a snapshot, whole or a change against `sent`."""
        self.transport.write(frames.frame(frames.SNAPSHOT, body=encoded))
        self.sent = epoch

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self.hello is not None and self.hub.routers.get(self.hello.id) is self:
            del self.hub.routers[self.hello.id]
            self.hub.on_router()
        elif self.hello is not None and self.hub.replicas.get(self.hello.id) is self:
            del self.hub.replicas[self.hello.id]
            self.hub.on_replica(self.hello.id)

    def on_data(self, data: bytes) -> int:
        """Handle frames."""
        at = 0
        while len(data) - at >= frames.SIZE:
            length, rid, kind, _, _, _, _, meta_length = frames.HEADER.unpack_from(data, at)
            end = at + frames.SIZE + length
            if end > len(data):
                break
            try:
                self._handle(kind, rid, data[at + frames.SIZE + meta_length : end])
            except (msgspec.MsgspecError, PermissionError):
                self.transport.abort()  # not one of ours, or of another release
                return len(data)
            at = end
        return at

    def _handle(self, kind: int, rid: int, body: bytes) -> None:
        hub = self.hub
        if kind == frames.HELLO:
            self.hello = msgspec.msgpack.decode(body, type=Hello)
            if self.replica and (self.hello.kind, self.hello.id) != ("replica", self.replica):
                log.warning("the replica %s says that it is %s", self.replica, self.hello.id)
                raise PermissionError(self.replica)
            if self.hello.kind == "router":
                hub.routers[self.hello.id] = self
                hub.on_router()
            else:
                hub.replicas[self.hello.id] = self
                hub.on_replica(self.hello.id)
        elif kind == frames.ACK:
            self.epoch = msgspec.msgpack.decode(body, type=int)
            if self.epoch == 0:
                self.sent = 0
                hub.on_router()
            hub.acknowledged()
        elif kind == frames.REPORT and self.hello is not None:
            if self.hello.kind == "router":
                hub.on_report(msgspec.msgpack.decode(body, type=RouterReport))
            else:
                report = msgspec.msgpack.decode(body, type=ReplicaReport)
                if self.replica in ("", report.replica):
                    hub.on_report(report)
        elif kind == frames.COMMAND and not self.replica:
            task = asyncio.get_running_loop().create_task(
                self._command(rid, msgspec.msgpack.decode(body, type=Command))
            )
            hub.tasks.add(task)
            task.add_done_callback(hub.tasks.discard)

    async def _command(self, rid: int, command: Command) -> None:
        try:
            reply = await self.hub.on_command(command)
        except Exception:
            log.exception("%s %s failed", command.verb, command.model)
            reply = CommandReply(500, "the control plane failed; its log says why")
        if not self.transport.is_closing():
            self.transport.write(frames.frame(frames.COMMAND, rid, body=msgspec.msgpack.encode(reply)))
