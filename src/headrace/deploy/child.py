"""A child process of the node agent: its spec goes in on standard input, its event lines come out.

Standard input stays open for as long as the node lives: that it ends tells the child that the node has gone, even by
kill -9. Each child has a session of its own, so that Ctrl-C reaches the node alone, and so that what a child leaves
behind when it dies can be ended with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import msgspec

log = logging.getLogger("headrace.deploy.child")
LOG_MAX = 16 << 20
LINE_MAX = 64 << 10
"""Bytes of an event line; a longer one makes no sense anyway."""
TAIL = 4096
LAST_LINES_S = 1.0
"""How long the event lines of a process that has ended are still read: whoever inherited the pipe may hold it open."""
NOT_STARTED = 127
"""Exit code of a process that could not be started at all, as a shell has it."""


class Pipes(asyncio.SubprocessProtocol):
    """Event lines out of standard output, and the moment when the process ends: it must not wait for the pipes to
    close, as `Process.wait` does, for a process that was killed may have left one that holds them open."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self.exited = asyncio.Event()
        self.silent = asyncio.Event()
        self._on_line = on_line
        self._rest = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Hand over the whole lines; keep what is left, but no line without end."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LINE_MAX]
        for line in lines:
            self._on_line(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Its standard output has ended."""
        if fd == 1:
            self.silent.set()

    def process_exited(self) -> None:
        """The process is no more."""
        self.exited.set()


class Child:
    """One running process.

    Args:
        name: of its log.
        module: ``python -m MODULE``.
        spec: handed over as the first line of standard input.
        logs: folder of the logs.
        on_line: receives every event line; one that it refuses with a ValueError is logged and skipped.
        on_exit: receives the exit code, negative for a signal; called once, whatever happens.
        environment: added to the node's own.
    """

    def __init__(
        self,
        name: str,
        module: str,
        spec: msgspec.Struct,
        logs: Path,
        on_line: Callable[[bytes], None],
        on_exit: Callable[[int], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.pid = 0
        self.exited = asyncio.Event()
        self._module = module
        self._spec = spec
        self._log = logs / f"{name}.log"
        self._on_line = on_line
        self._on_exit = on_exit
        self._environment = {**os.environ, **(environment or {})}
        self._transport: asyncio.SubprocessTransport | None = None
        self._input: asyncio.WriteTransport | None = None
        self._signal = 0
        """What it is to get as soon as it is there."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        code = NOT_STARTED
        try:
            code = await self._live()
        except OSError as error:
            log.error("%s cannot be started: %s", self.name, error)
        finally:
            self.exited.set()
            self._on_exit(code)

    async def _live(self) -> int:
        pipes = Pipes(self._hear)
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > LOG_MAX:
                os.replace(self._log, self._log.with_suffix(".log.1"))
        with self._log.open("ab") as file:
            command = (sys.executable, "-m", self._module)
            start = asyncio.get_running_loop().subprocess_exec
            transport, _ = await start(
                lambda: pipes, *command, stderr=file, start_new_session=True, env=self._environment
            )
        self._transport = transport
        self.pid = transport.get_pid()
        cast(asyncio.WriteTransport, transport.get_pipe_transport(0)).write(msgspec.json.encode(self._spec) + b"\n")
        self._input = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
        if self._signal:
            self._send(self._signal)
        await pipes.exited.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started and left behind
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pipes.silent.wait(), LAST_LINES_S)
        code = transport.get_returncode()
        transport.close()
        return NOT_STARTED if code is None else code

    def _hear(self, line: bytes) -> None:
        try:
            self._on_line(line)
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("%s: an event line that makes no sense: %s", self.name, error)

    def _send(self, number: int) -> None:
        self._signal = number
        if self._transport is not None:
            with contextlib.suppress(ProcessLookupError):
                self._transport.send_signal(number)

    def say(self, line: msgspec.Struct) -> None:
        """Write a line to its standard input; lost on one that has ended."""
        if self._input is not None and not self.exited.is_set():
            self._input.write(msgspec.json.encode(line) + b"\n")

    def terminate(self) -> None:
        """Ask it to drain and leave."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)

    async def stop(self, timeout_s: float) -> None:
        """Drain, bounded; then kill."""
        self.terminate()
        try:
            await asyncio.wait_for(self.exited.wait(), timeout_s)
        except TimeoutError:
            self.kill()
            await self.exited.wait()

    def log_tail(self) -> str:
        """The last line of its log, for people who ask why it ended."""
        try:
            with self._log.open("rb") as file:
                file.seek(max(self._log.stat().st_size - TAIL, 0))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][:300] if lines else ""
