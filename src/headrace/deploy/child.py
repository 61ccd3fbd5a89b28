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
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, cast

import msgspec

from headrace.core.specs import Origin

log = logging.getLogger("headrace.deploy.child")
LOG_MAX = 16 << 20
LINE_MAX = 64 << 10
"""Bytes of an event line; a longer one makes no sense anyway."""
TAIL = 4096
LAST_LINES_S = 1.0
"""How long the event lines of a process that has ended are still read: whoever inherited the pipe may hold it open."""
REAP_S = 0.02
NOT_STARTED = 127
"""Exit code of a process that could not be started at all, as a shell has it."""


class Pipes(asyncio.SubprocessProtocol):
    """Event lines out of standard output, and the moment when the process ends: it must not wait for the pipes to
    close, as `Process.wait` does, for a process that was killed may have left one that holds them open."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self.exited = asyncio.Event()
        self.silent = asyncio.Event()
        self.on_line = on_line
        self._rest = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Hand over the whole lines; keep what is left, but no line without end."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LINE_MAX]
        for line in lines:
            self.on_line(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Its standard output has ended."""
        if fd == 1:
            self.silent.set()

    def process_exited(self) -> None:
        """The process is no more."""
        self.exited.set()


class Process(Protocol):
    """A process that runs, however it was started."""

    pid: int
    pipes: Pipes
    origin: Origin

    def write(self, data: bytes) -> None:
        """Write to its standard input."""

    def send_signal(self, number: int) -> None:
        """Send a signal. Raises ProcessLookupError."""

    def code(self) -> int | None:
        """Its exit code, negative for a signal; None: unknown, or not ended."""

    def close(self) -> None:
        """Let go of its pipes."""


Launch = Callable[[Callable[[bytes], None], Path, Mapping[str, str]], Awaitable[Process | None]]
"""Another way to start a process: who hears its lines, its log, what is added to the environment -> the process, or
None where there is none to be had that way. It takes the spec on standard input as the module would."""


class Spawned:
    """A process that asyncio started. Implements `Process`."""

    origin: Origin = "process"

    def __init__(self, transport: asyncio.SubprocessTransport, pipes: Pipes) -> None:
        self.pid = transport.get_pid()
        self.pipes = pipes
        self._transport = transport

    def write(self, data: bytes) -> None:
        """See `Process.write`."""
        cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0)).write(data)

    def send_signal(self, number: int) -> None:
        """See `Process.send_signal`."""
        self._transport.send_signal(number)

    def code(self) -> int | None:
        """See `Process.code`."""
        return self._transport.get_returncode()

    def close(self) -> None:
        """See `Process.close`."""
        self._transport.close()


async def spawn(
    arguments: tuple[str, ...],
    on_line: Callable[[bytes], None],
    log_path: Path,
    environment: Mapping[str, str],
    hidden: Collection[str] = (),
    stdin: int = asyncio.subprocess.PIPE,
) -> Process:
    """Start Python with these arguments in a session of its own, `environment` added to this process's without
    `hidden`. Raises OSError."""
    pipes = Pipes(on_line)
    command = (sys.executable, *arguments)
    own = {name: value for name, value in os.environ.items() if name not in hidden}
    start = asyncio.get_running_loop().subprocess_exec
    with log_path.open("ab") as file:
        transport, _ = await start(
            lambda: pipes, *command, stdin=stdin, stderr=file, start_new_session=True, env={**own, **environment}
        )
    return Spawned(transport, pipes)


async def reap(group: int) -> None:
    """Take the exit codes of a group that was killed. Whatever it had left behind became a child of this process where
    that is a subreaper, and nobody else would ask for them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is None:
                await asyncio.sleep(REAP_S)


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
        hidden: variables of the node's own that it must not see.
        launch: a quicker way to start the module, tried first.
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
        hidden: Collection[str] = (),
        launch: Launch | None = None,
    ) -> None:
        self.name = name
        self.pid = 0
        self.origin: Origin = ""
        self.exited = asyncio.Event()
        self._module = module
        self._spec = spec
        self._log = logs / f"{name}.log"
        self._on_line = on_line
        self._on_exit = on_exit
        self._environment = environment or {}
        self._hidden = hidden
        self._launch = launch
        self._process: Process | None = None
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
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > LOG_MAX:
                os.replace(self._log, self._log.with_suffix(".log.1"))
        launch, process = self._launch, None
        if launch is not None:
            process = await launch(self._hear, self._log, self._environment)
        if process is None:
            process = await spawn(("-m", self._module), self._hear, self._log, self._environment, self._hidden)
        self._process = process
        self.pid, self.origin = process.pid, process.origin
        process.write(msgspec.json.encode(self._spec) + b"\n")
        if self._signal:
            self._send(self._signal)
        await process.pipes.exited.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started and left behind
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.pipes.silent.wait(), LAST_LINES_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reap(self.pid), LAST_LINES_S)
        code = process.code()
        process.close()
        return NOT_STARTED if code is None else code

    def _hear(self, line: bytes) -> None:
        try:
            self._on_line(line)
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("%s: an event line that makes no sense: %s", self.name, error)

    def _send(self, number: int) -> None:
        self._signal = number
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def say(self, line: msgspec.Struct) -> None:
        """Write a line to its standard input; lost on one that has ended."""
        if self._process is not None and not self.exited.is_set():
            self._process.write(msgspec.json.encode(line) + b"\n")

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
