"""The control plane's end of its Unix socket: routers and replicas connect to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable

import msgspec

from headrace.core import frames
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
    """

    def __init__(self, on_report: Reports, on_command: Commands, on_router: Callable[[], None]) -> None:
        self.routers: dict[str, Peer] = {}
        self.on_report = on_report
        self.on_command = on_command
        self.on_router = on_router
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None
        self._acknowledged = asyncio.Event()

    async def listen(self, path: str) -> None:
        """Accept connections on a Unix socket; one left by a dead process is replaced."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: Peer(self), path)
        os.chmod(path, 0o600)

    def close(self) -> None:
        """Accept nothing more."""
        if self._server is not None:
            self._server.close()

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
    """One connection."""

    FRAME_MAX = 64 << 20

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
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
            except msgspec.MsgspecError:
                self.transport.abort()  # not one of ours, or of another release
                return len(data)
            at = end
        return at

    def _handle(self, kind: int, rid: int, body: bytes) -> None:
        hub = self.hub
        if kind == frames.HELLO:
            self.hello = msgspec.msgpack.decode(body, type=Hello)
            if self.hello.kind == "router":
                hub.routers[self.hello.id] = self
                hub.on_router()
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
                hub.on_report(msgspec.msgpack.decode(body, type=ReplicaReport))
        elif kind == frames.COMMAND:
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
