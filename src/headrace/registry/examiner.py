"""Has artifacts examined in a process of their own, so that one that crashes takes nothing with it.

Formats that cannot run code share one warm process; Python models and trusted pickles get a fresh one each.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import msgspec

from headrace.core.errors import Unprocessable
from headrace.core.specs import Examination, ExaminationRequest

TIMEOUT_S = 60.0
LINE_MAX = 16 << 20


class Examiner:
    """Runs ``python -m headrace.server.examine``."""

    def __init__(self) -> None:
        self._shared: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def examine(self, request: ExaminationRequest) -> Examination:
        """What the artifact is. Raises Unprocessable when it crashes or takes too long; faults it reports itself
        come back in the result."""
        trusted = request.options is not None and request.options.trust
        if request.engine == "python" or trusted:
            process = await self._start()
            try:
                return await self._ask(process, request)
            finally:
                await _end(process)
        async with self._lock:
            if self._shared is None or self._shared.returncode is not None:
                self._shared = await self._start()
            try:
                return await self._ask(self._shared, request)
            except BaseException:
                await _end(self._shared)
                self._shared = None
                raise

    async def close(self) -> None:
        """End the warm process."""
        if self._shared is not None:
            await _end(self._shared)
            self._shared = None

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "headrace.server.examine",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_MAX,
        )

    async def _ask(self, process: asyncio.subprocess.Process, request: ExaminationRequest) -> Examination:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S)
        except TimeoutError:
            message = f"the model did not load and run once within {TIMEOUT_S:.0f} s"
            raise Unprocessable(message, field="artifact") from None
        except ConnectionError:
            line = b""
        if not line:
            code = await process.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise Unprocessable(f"the model crashed while loading ({how})", field="artifact")
        return msgspec.json.decode(line, type=Examination)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
