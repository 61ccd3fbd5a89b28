"""Has artifacts examined in a process of their own, so that one that crashes takes nothing with it.

Formats that cannot run code share one warm process; Python models, pipelines and trusted pickles get a fresh one each,
which ends with its answer. Each leads a process group, so that whatever a model forked ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Collection

import msgspec

from headrace.core.errors import Unprocessable
from headrace.core.golden import GoldenResult
from headrace.core.process import engine_environment
from headrace.core.reference import Reference
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, Examination, ExaminationRequest, Fault

TIMEOUT_S = 60.0
LINE_MAX = 16 << 20
IDLE_S = 60.0
"""How long the warm process waits for another artifact: it has met every engine, and holds their libraries."""
FRESH_MAX = 2
"""Fresh processes at the same time; more wait."""
LOOK_S = 0.05
"""Pause between looks whether a process that says nothing still lives."""


class _Answer(msgspec.Struct, frozen=True):
    """A line from the process: the first two, or what is wrong."""

    signature: Signature | None = None
    options: EngineOptions | None = None
    error: Fault | None = None
    tests: tuple[GoldenResult, ...] = ()
    reference: Reference | None = None


class Examiner:
    """Runs ``python -m headrace.server.examine``, or another program that speaks like it.

    Args:
        command: the program.
        timeout_s: how long a model may take to load and run once.
        idle_s: how long the warm process is kept without work.
        hidden: variables of our environment that it must not see.
    """

    def __init__(
        self,
        command: tuple[str, ...] = (sys.executable, "-m", "headrace.server.examine"),
        timeout_s: float = TIMEOUT_S,
        idle_s: float = IDLE_S,
        hidden: Collection[str] = (),
    ) -> None:
        self._hidden = hidden
        self._command = command
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._leave: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._warm: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._fresh = asyncio.Semaphore(FRESH_MAX)

    async def examine(self, request: ExaminationRequest) -> Examination:
        """Look into an artifact; a fault that the engine names comes back in the result.

        Raises:
            Unprocessable: the artifact crashes the process, or takes too long.
        """
        if request.engine in ("python", "torch", "pipeline") or (request.options is not None and request.options.trust):
            async with self._fresh:
                process = await self._start()
                try:
                    return _read(await self._exchange(process, request))
                finally:
                    await end(process)
        async with self._lock:
            self._keep()
            if self._warm is None or self._warm.returncode is not None:
                self._warm = await self._start()
            try:
                line = await self._exchange(self._warm, request)
            except BaseException:
                await self.close()  # what state it is in nobody knows
                raise
            self._leave = asyncio.get_running_loop().call_later(self._idle_s, self._let_go)
        return _read(line)

    def _keep(self) -> None:
        if self._leave is not None:
            self._leave.cancel()
            self._leave = None

    def _let_go(self) -> None:
        """Nobody has asked for a while."""
        process, self._warm, self._leave = self._warm, None, None
        if process is not None:
            self._leaving = asyncio.get_running_loop().create_task(end(process))

    async def close(self) -> None:
        """End the warm process."""
        self._keep()
        process, self._warm = self._warm, None
        if process is not None:
            await end(process)
        if self._leaving is not None:
            await self._leaving

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdin=pipe,
            stdout=pipe,
            limit=LINE_MAX,
            start_new_session=True,
            env={**{n: v for n, v in os.environ.items() if n not in self._hidden}, **engine_environment(1)},
        )

    async def _exchange(self, process: asyncio.subprocess.Process, request: ExaminationRequest) -> bytes:
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            line = await next_line(process, self._timeout_s)
        except TimeoutError:
            message = f"the model did not load and run once within {self._timeout_s:g} s"
            raise Unprocessable(message, field="digest") from None
        except (ConnectionError, ValueError):  # it died before it read; or a line without end
            line = b""
        if not line.endswith(b"\n"):
            raise Unprocessable(f"the model crashed while loading ({await death(process)})", field="digest")
        return line


async def next_line(process: asyncio.subprocess.Process, timeout_s: float) -> bytes:
    """The next line of its output; what there is of one when it has died, though a child of it holds the output open.
    Raises TimeoutError."""
    assert process.stdout is not None
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    reading = loop.create_task(process.stdout.readline())
    try:
        while not reading.done():
            dead = process.returncode is not None  # looked at before the wait: its last words are read after it
            await asyncio.wait({reading}, timeout=LOOK_S)
            if dead and not reading.done():
                return b""
            if loop.time() > end:
                raise TimeoutError
        return reading.result()
    finally:
        reading.cancel()


def _read(line: bytes) -> Examination:
    try:
        answer = msgspec.json.decode(line, type=_Answer)
    except msgspec.DecodeError:
        return Examination(fault=Fault("the model wrote over the examination's answer", "digest"))
    if answer.error is None and (answer.signature is None or answer.options is None):
        return Examination(fault=Fault("the examination ended without a signature", "digest"))
    return Examination(answer.signature, answer.options, answer.error, answer.tests, answer.reference)


async def death(process: asyncio.subprocess.Process) -> str:
    """How a process ended."""
    code = process.returncode
    if code is None:
        try:
            code = await asyncio.wait_for(process.wait(), 5.0)
        except TimeoutError:
            return "it closed its output"
    return f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.Signals(-code).name}"


async def end(process: asyncio.subprocess.Process) -> None:
    """End a process and whatever it has forked."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Bounded: it reads to the output's end, which a child that has left the group can hold open.
    with contextlib.suppress(TimeoutError, ConnectionError):
        await asyncio.wait_for(process.communicate(), 5.0)
