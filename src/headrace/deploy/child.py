"""A child process of the node agent: its spec goes in on standard input, its event lines come out.

Standard input stays open for as long as the node lives: that it ends tells the child that the node has gone, even by
kill -9. Each child has a session of its own, so that Ctrl-C reaches the node alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

LOG_MAX = 16 << 20
TAIL = 4096


class Child:
    """One running process.

    Args:
        name: of its log.
        module: ``python -m MODULE``.
        spec: handed over as the first line of standard input.
        logs: folder of the logs.
        on_line: receives every event line.
        on_exit: receives the exit code, negative for a signal.
    """

    def __init__(
        self,
        name: str,
        module: str,
        spec: msgspec.Struct,
        logs: Path,
        on_line: Callable[[bytes], None],
        on_exit: Callable[[int], None],
    ) -> None:
        self.name = name
        self.pid = 0
        self.exited = asyncio.Event()
        self._module = module
        self._spec = spec
        self._log = logs / f"{name}.log"
        self._on_line = on_line
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._stopping = False

    async def _run(self) -> None:
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > LOG_MAX:
                os.replace(self._log, self._log.with_suffix(".log.1"))
        with self._log.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.pid = process.pid
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(msgspec.json.encode(self._spec) + b"\n")
            await process.stdin.drain()
        if self._stopping:
            self.terminate()
        while line := await process.stdout.readline():
            self._on_line(line)
        code = await process.wait()
        self.exited.set()
        self._on_exit(code)

    def terminate(self) -> None:
        """Ask it to drain and leave."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

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
            with self._log.open("rb") as log:
                log.seek(max(self._log.stat().st_size - TAIL, 0))
                lines = log.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][:300] if lines else ""
