"""A process that a zygote forked, as its node holds it: by a pidfd and the ends of its pipes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import cast

from headrace.core.specs import Origin
from headrace.deploy.child import Pipes


class Output(asyncio.Protocol):
    """Hands standard output to `Pipes`, which names it by its number."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes

    def data_received(self, data: bytes) -> None:
        """Some of it."""
        self._pipes.pipe_data_received(1, data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Its end."""
        self._pipes.pipe_connection_lost(1, exc)


class Ends:
    """Both ends of a new process's standard input and output; `theirs` and its log go with the request to fork.

    Raises OSError where there are no descriptors left.
    """

    def __init__(self, log: int) -> None:
        self._log = log
        self.input, self.write = os.pipe()
        try:
            self.read, self.output = os.pipe()
        except OSError:
            os.close(self.input)
            os.close(self.write)
            raise

    @property
    def theirs(self) -> tuple[int, int, int]:
        """Standard input, output and error of the new process."""
        return self.input, self.output, self._log

    def sent(self) -> None:
        """The new process has its own of them, or will never have."""
        for descriptor in self.theirs:
            os.close(descriptor)

    def close(self) -> None:
        """There will be no process: one that is under way sees the end of its input and leaves."""
        os.close(self.write)
        os.close(self.read)


class Forked:
    """A child of this process that a zygote forked. Implements `child.Process`."""

    def __init__(self, pid: int, on_line: Callable[[bytes], None]) -> None:
        self.pid = pid
        self.pipes = Pipes(on_line)
        self.origin: Origin = "zygote"
        self._code: int | None = None
        self._transports: list[asyncio.BaseTransport] = []
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)  # it stays its child's, dead or alive, until that is waited for
        self._loop.add_reader(self._pidfd, self._exited)

    async def hold(self, ends: Ends) -> None:
        """Take over our ends of its pipes."""
        loop = self._loop
        reading, _ = await loop.connect_read_pipe(lambda: Output(self.pipes), os.fdopen(ends.read, "rb", 0))
        writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ends.write, "wb", 0))
        self._transports = [writing, reading]

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        with contextlib.suppress(ChildProcessError):
            found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if found is not None:
                self._code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        os.close(self._pidfd)
        self._pidfd = -1
        self.pipes.process_exited()

    def write(self, data: bytes) -> None:
        """See `child.Process.write`."""
        cast(asyncio.WriteTransport, self._transports[0]).write(data)

    def send_signal(self, number: int) -> None:
        """See `child.Process.send_signal`."""
        if self._pidfd < 0:
            raise ProcessLookupError
        signal.pidfd_send_signal(self._pidfd, number)

    def code(self) -> int | None:
        """See `child.Process.code`."""
        return self._code

    def close(self) -> None:
        """See `child.Process.close`."""
        for transport in self._transports:
            transport.close()
