"""The data plane's end of the control plane's socket: says hello, sends a report each second, comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from headrace.core import addresses, frames
from headrace.core.report import Command, CommandReply, Hello

REPORT_S = 1.0
RECONNECT_S = 0.2
COMMAND_TIMEOUT_S = 60.0


class ControlPeer(frames.FrameProtocol):
    """A router's or replica's connection to the control plane.

    Args:
        address: ``unix:/path`` or ``tcp:host:port``; empty: there is no control plane.
        hello: who we are; `epoch` is read again at each connection.
        report: makes the next report's bytes; only called while connected, so that nothing is lost meanwhile.
        on_snapshot: receives a snapshot's bytes; whoever serves by it then calls `acknowledge`.
        on_stop: called when the control plane says to drain and leave.
        key: on TCP, the replica's.
    """

    def __init__(
        self,
        address: str,
        hello: Hello,
        report: Callable[[], bytes],
        on_snapshot: Callable[[bytes], None] | None = None,
        on_stop: Callable[[], None] | None = None,
        key: bytes = b"",
    ) -> None:
        super().__init__()
        self.hello = hello
        self.connected = False
        self._address = address
        self._report = report
        self._on_snapshot = on_snapshot
        self._on_stop = on_stop
        self._key = key
        self._task: asyncio.Task[None] | None = None
        self._commands: dict[int, asyncio.Future[CommandReply]] = {}
        self._command_id = 0

    def start(self) -> None:
        """Connect, and keep connected, in the background."""
        if self._address:
            self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Send a last report and close."""
        if self.connected:
            self.transport.write(frames.frame(frames.REPORT, body=self._report()))
            self.transport.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        next_report = loop.time() + REPORT_S
        while True:
            if not self.connected:
                with contextlib.suppress(OSError):
                    await addresses.connect(self._address, self, "reports", self._key, self.hello.id)
                await asyncio.sleep(RECONNECT_S)
                continue
            await asyncio.sleep(max(next_report - loop.time(), 0.0))
            next_report = max(next_report + REPORT_S, loop.time())
            if self.connected:
                self.transport.write(frames.frame(frames.REPORT, body=self._report()))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connected = True
        self.transport.write(frames.frame(frames.HELLO, body=msgspec.msgpack.encode(self.hello)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.connected = False
        for future in self._commands.values():
            if not future.done():
                future.set_result(CommandReply(503, "the control plane is not there"))
        self._commands.clear()

    def on_data(self, data: bytes) -> int:
        at = 0
        while len(data) - at >= frames.SIZE:
            length, rid, kind, _, _, _, _, meta_length = frames.HEADER.unpack_from(data, at)
            end = at + frames.SIZE + length
            if end > len(data):
                break
            body = data[at + frames.SIZE + meta_length : end]
            at = end
            if kind == frames.SNAPSHOT and self._on_snapshot is not None:
                self._on_snapshot(body)
            elif kind == frames.GOAWAY and self._on_stop is not None:
                self._on_stop()
            elif kind == frames.COMMAND and (future := self._commands.pop(rid, None)) is not None:
                future.set_result(msgspec.msgpack.decode(body, type=CommandReply))
        return at

    def acknowledge(self, epoch: int) -> None:
        """Tell that we serve by the snapshot of this epoch; 0 asks for a whole one."""
        self.hello.epoch = epoch
        if self.connected:
            self.transport.write(frames.frame(frames.ACK, body=msgspec.msgpack.encode(epoch)))

    async def command(self, command: Command) -> CommandReply:
        """Have the control plane do something on behalf of a client."""
        if not self.connected:
            return CommandReply(503, "the control plane is not there")
        self._command_id += 1
        future = asyncio.get_running_loop().create_future()
        self._commands[self._command_id] = future
        self.transport.write(frames.frame(frames.COMMAND, self._command_id, body=msgspec.msgpack.encode(command)))
        try:
            reply: CommandReply = await asyncio.wait_for(future, COMMAND_TIMEOUT_S)
            return reply
        except TimeoutError:
            self._commands.pop(self._command_id, None)
            return CommandReply(504, "the control plane did not answer in time")
