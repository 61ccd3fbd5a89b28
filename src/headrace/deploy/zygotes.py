"""The node's zygotes: processes with an imported runtime, from which replicas are forked (`server.zygote`).

One per runtime in use, started with its first replica or with the node, and started again when it ends. A start waits
for a zygote that is on its way, for it will be there no later than a process of its own would; without one - it has
failed, or cannot be forked - the replica is started as a process of its own. `idle` processes per runtime stand ready
on top of that, forked and waiting for their spec.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from headrace.core import zygote
from headrace.core.process import engine_environment
from headrace.core.telemetry import rss_bytes
from headrace.core.zygote import Fork, Handover, Runtime, ZygoteReply, ZygoteSpec
from headrace.deploy.child import Launch, Process, spawn
from headrace.deploy.forked import Ends, Forked
from headrace.deploy.wire import ZygoteStatus

log = logging.getLogger("headrace.deploy.zygotes")
MODULE = "headrace.server.zygote"
SUPPORTED = sys.platform == "linux"
"""A node has to become the parent of what its zygotes fork, and to wait for it by descriptor."""
READY_S = 20.0
"""How long a zygote may take to import its runtime."""
FORK_S = 5.0
"""How long it may take to fork."""
RESTART_S = (0.1, 30.0)
"""First and longest pause before a zygote that ended is started again."""
PR_SET_CHILD_SUBREAPER = 36


def nothing(line: bytes) -> None:
    """Of a process that has no spec yet, nobody hears anything."""


class Zygote:
    """One zygote, kept alive.

    Args:
        runtime: what it imports.
        logs: folder of its log.
        hidden: variables of the node's own that neither it nor what it forks may see.
    """

    def __init__(self, runtime: Runtime, logs: Path, hidden: Collection[str] = ()) -> None:
        self.runtime = runtime
        self.hidden = hidden
        self.pid = 0
        self.log = logs / f"zygote-{runtime}.log"
        self.why = ""
        """Why it cannot be had for good."""
        self._closing = asyncio.Event()
        self._process: Process | None = None
        self._socket: socket.socket | None = None
        self._settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether it is there; not done: on its way."""
        self._asked: deque[asyncio.Future[int]] = deque()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause = RESTART_S[0]
        while not self._closing.is_set():
            started = loop.time()
            try:
                await self._live()
            except OSError as error:
                log.warning("the zygote of %s cannot be started: %s", self.runtime, error)
            finally:
                self._gone()
            if self._closing.is_set():
                return
            if self.why:
                log.warning("replicas of %s are not forked: %s", self.runtime, self.why)
                return
            log.warning("the zygote of %s has ended, see %s", self.runtime, self.log)
            pause = RESTART_S[0] if loop.time() - started > RESTART_S[1] else min(pause * 2, RESTART_S[1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            self._settled = loop.create_future()
        self._gone()

    async def _live(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        loop = asyncio.get_running_loop()
        with ours:
            ours.setblocking(False)
            with theirs:
                limits = engine_environment(1)
                process = await spawn(("-m", MODULE), nothing, self.log, limits, self.hidden, theirs.fileno())
            self._socket, self.pid, self._process = ours, process.pid, process
            loop.add_reader(ours, self._readable)
            late = loop.call_later(READY_S, self._late)
            try:
                zygote.send(ours, ZygoteSpec(self.runtime))
                if self._closing.is_set():
                    self._kill()
                await process.pipes.exited.wait()
            finally:
                late.cancel()
                loop.remove_reader(ours)
                self._kill()
                await process.pipes.exited.wait()
                process.close()
                self._process = None

    def _late(self) -> None:
        if not self._settled.done():
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data, _ = zygote.receive(self._socket)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)  # that it has ended is seen elsewhere
            return
        reply = msgspec.json.decode(data, type=ZygoteReply)
        if not self._settled.done():
            self.why = reply.fault
            self._settled.set_result(not reply.fault)
        elif self._asked:
            asked = self._asked.popleft()
            if reply.fault:
                log.warning("the zygote of %s: %s", self.runtime, reply.fault)
            if not asked.done():
                asked.set_result(reply.pid)
            elif reply.pid:  # nobody waits any more, and it leaves: its input has ended
                Forked(reply.pid, nothing)

    def _gone(self) -> None:
        self._socket, self.pid = None, 0
        if self._settled.done():
            self._settled = asyncio.get_running_loop().create_future()
        self._settled.set_result(False)
        while self._asked:
            asked = self._asked.popleft()
            if not asked.done():
                asked.set_result(0)

    async def fork(self, on_line: Callable[[bytes], None]) -> Forked | None:
        """A new process that waits for its handover; None where there is none to be had."""
        if not await asyncio.shield(self._settled) or self._socket is None:
            return None
        asked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with contextlib.ExitStack() as undo:
            try:
                ends = Ends(os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
                undo.callback(ends.close)
                try:
                    zygote.send(self._socket, Fork(), ends.theirs)
                finally:
                    ends.sent()
                self._asked.append(asked)
                pid = await asyncio.wait_for(asked, FORK_S)
                if not pid:
                    return None
                forked = Forked(pid, on_line)
            except (OSError, TimeoutError) as error:
                log.warning("the zygote of %s does not fork: %s", self.runtime, error or "no answer")
                return None
            undo.pop_all()
        await forked.hold(ends)
        return forked

    @property
    def ready(self) -> bool:
        """It forks."""
        return self._socket is not None and self._settled.done() and self._settled.result()

    async def close(self) -> None:
        """End it; what it has forked lives on."""
        self._closing.set()
        self._kill()
        await self._task


class Zygotes:
    """All of a node.

    Args:
        logs: folder of their logs.
        idle: processes that stand ready, per runtime.
        hidden: variables of the node's own that none of them may see.
    """

    def __init__(self, logs: Path, idle: int = 0, hidden: Collection[str] = ()) -> None:
        self._logs = logs
        self._hidden = hidden
        self._idle_wanted = idle
        self._zygotes: dict[Runtime, Zygote] = {}
        self._idle: dict[Runtime, deque[Process]] = {}
        self._filling: dict[Runtime, asyncio.Task[None]] = {}
        self._closed = False
        if SUPPORTED:
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(self, runtimes: Iterable[Runtime]) -> None:
        """Have the zygotes of these runtimes, and their idle processes, from now on."""
        for runtime in runtimes:
            if SUPPORTED and not self._closed and runtime not in self._zygotes:
                self._zygotes[runtime] = Zygote(runtime, self._logs, self._hidden)
            self._fill(runtime)

    def launch(self, runtime: Runtime) -> Launch:
        """How a replica of this runtime is started; None of it: as a process of its own."""

        async def start(on_line: Callable[[bytes], None], path: Path, environment: Mapping[str, str]) -> Process | None:
            self.start((runtime,))
            process: Process | None = self._take(runtime)
            if process is None and runtime in self._zygotes:
                process = await self._zygotes[runtime].fork(on_line)
            self._fill(runtime)
            if process is not None:
                process.pipes.on_line = on_line
                process.write(msgspec.json.encode(Handover(str(path), dict(environment))) + b"\n")
            return process

        return start

    def _take(self, runtime: Runtime) -> Process | None:
        waiting = self._idle.get(runtime, deque())
        while waiting:
            process = waiting.popleft()
            if not process.pipes.exited.is_set():
                process.origin = "idle"
                return process
            process.close()
        return None

    def _fill(self, runtime: Runtime) -> None:
        """Replace in the background what was taken."""
        running = self._filling.get(runtime)
        if self._idle_wanted and not self._closed and (running is None or running.done()):
            self._filling[runtime] = asyncio.get_running_loop().create_task(self._replenish(runtime))

    async def _replenish(self, runtime: Runtime) -> None:
        waiting = self._idle.setdefault(runtime, deque())
        while len(waiting) < self._idle_wanted:
            process: Process | None = None
            found = self._zygotes.get(runtime)
            if found is not None:
                process = await found.fork(nothing)
            if process is None and (found is None or found.why):  # it cannot be forked: imported each by itself
                with contextlib.suppress(OSError):
                    path = self._logs / f"idle-{runtime}.log"
                    arguments = ("-m", MODULE, "idle", runtime)
                    process = await spawn(arguments, nothing, path, engine_environment(1), self._hidden)
            if process is None:
                return  # tried again with the next start
            waiting.append(process)

    def statuses(self) -> list[ZygoteStatus]:
        """What there is, and what it takes."""
        return [
            ZygoteStatus(z.runtime, z.pid, z.ready, rss_bytes(z.pid), len(self._idle.get(z.runtime, ())), z.why)
            for z in self._zygotes.values()
        ]

    async def close(self) -> None:
        """End the zygotes and what stands idle."""
        self._closed = True
        for task in self._filling.values():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for zygote_ in self._zygotes.values():
            await zygote_.close()
        for process in [process for waiting in self._idle.values() for process in waiting]:
            process.close()  # the end of its input is the end of it
            await process.pipes.exited.wait()
