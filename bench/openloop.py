"""An open-loop load: requests leave by a fixed schedule, however slow the answers are, and a latency counts from the
moment at which its request was due. A closed loop would send less while the server stalls, and so hide the stall."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VERSION = re.compile(rb'"model_version"\s*:\s*"(\d+)"')
LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
ID = re.compile(rb'"id"\s*:\s*"([^"]*)"')
TIMEOUT_S = 10.0
LATE_S = 2.0
"""An answer that takes longer than this, from when the request left, is no answer any more."""


@dataclass(slots=True)
class Shot:
    """One request. Times are of the loop's clock; `status` 0: the connection broke or no answer came."""

    due: float
    sent: float
    answered: float = 0.0
    status: int = 0
    version: int = 0
    why: str = ""

    @property
    def failed(self) -> bool:
        """Whether its caller would complain."""
        return self.status != 200 or bool(self.why)


class Connection(asyncio.Protocol):
    """Keep-alive, one request at a time."""

    def __init__(self, load: OpenLoop) -> None:
        self.load = load
        self.transport: Any = None
        self.shot: Shot | None = None
        self.data = b""
        self.id: re.Match[bytes] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def fire(self, shot: Shot, request: bytes) -> None:
        self.shot = shot
        self.data = b""
        self.id = ID.search(request)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head = self.data.find(b"\r\n\r\n")
        found = LENGTH.search(self.data, 0, head + 2) if head >= 0 else None
        if self.shot is None or found is None or len(self.data) < head + 4 + int(found[1]):
            return
        shot, self.shot = self.shot, None
        shot.answered = self.load.loop.time()
        shot.status = int(self.data[9:12])
        version = VERSION.search(self.data, head)
        shot.version = int(version[1]) if version else 0
        if shot.status != 200:
            shot.why = self.data[head + 4 : head + 300].decode(errors="replace")
        elif self.id is not None and ((echoed := ID.search(self.data, head)) is None or echoed[1] != self.id[1]):
            shot.why = f"the answer to another request: {self.data[head + 4 : head + 200]!r}"
        elif shot.answered - shot.sent > LATE_S:
            shot.why = f"answered after more than {LATE_S:g} s"
        if b"connection: close" in self.data[:head].lower():
            self.transport.close()
        else:
            self.load.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.load.idle:
            self.load.idle.remove(self)
        if self.shot is not None:
            self.shot.answered = self.load.loop.time()
            self.shot.why = f"connection lost: {exc}"
            self.shot = None


class OpenLoop:
    """Sends `rate_per_s` requests a second to a port of this machine until stopped."""

    def __init__(self, port: int, requests: Sequence[bytes], rate_per_s: float) -> None:
        self.port = port
        self.requests = itertools.cycle(requests)
        self.rate_per_s = rate_per_s
        self.loop = asyncio.get_running_loop()
        self.idle: deque[Connection] = deque()
        self.shots: list[Shot] = []
        self.opening: set[asyncio.Task[None]] = set()
        self.stopping = False

    async def run(self) -> None:
        """Send until `stopping`, then wait for the answers."""
        start = self.loop.time()
        for number in itertools.count():
            due = start + number / self.rate_per_s
            if self.stopping:
                break
            if (pause := due - self.loop.time()) > 0:
                await asyncio.sleep(pause)
            self.send(due)
        end = self.loop.time() + TIMEOUT_S
        while self.loop.time() < end and any(shot.answered == 0.0 for shot in self.shots):
            await asyncio.sleep(0.02)
        for shot in self.shots:
            if shot.answered == 0.0:
                shot.answered, shot.why = self.loop.time(), f"no answer in {TIMEOUT_S:.0f} s"
        for connection in list(self.idle):
            connection.transport.close()
        await asyncio.gather(*self.opening)

    def send(self, due: float) -> None:
        """One request, on an idle connection or a new one."""
        shot = Shot(due, self.loop.time())
        self.shots.append(shot)
        request = next(self.requests)
        if self.idle:
            self.idle.pop().fire(shot, request)
        else:
            task = self.loop.create_task(self.open(shot, request))
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)

    async def open(self, shot: Shot, request: bytes) -> None:
        """Connect, then send."""
        try:
            _, connection = await self.loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
        except OSError as error:
            shot.answered, shot.why = self.loop.time(), f"no connection: {error}"
            return
        connection.fire(shot, request)
