"""What a flow is made of: the steps that it asks for, the answers, and a request that outlives a restart.

A flow is a generator. It yields what it needs - a request sent, a pause made - and is sent the answer; its return value
is the operation's. `client` has the two drivers, which are all that differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from headrace.client import calls
from headrace.client.calls import Call
from headrace.core.errors import Unreachable
from headrace.core.signature import Signature

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""(bytes that have arrived, bytes in all)."""
RETRY_S = 10.0
"""How long a request to a control plane that has gone away is tried again: longer than one takes to restart."""
RETRY_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Send:
    """A request, to the ``control`` or the ``data`` plane; its body is `content` or a file."""

    plane: Literal["control", "data"]
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    span: tuple[int, int] | None = None
    """Of the file: from this byte to before that one; None for all of it."""
    progress: Progress | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A response."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """No response. `refused`: nobody listened, so nothing was done."""

    url: str
    reason: str
    refused: bool

    def error(self) -> Unreachable:
        """As the caller sees it."""
        return Unreachable(f"{self.url} does not answer: {self.reason}", hint="is the platform running? headrace up")


@dataclass(slots=True)
class Memory:
    """What a client remembers between its operations."""

    signatures: dict[str, Signature] = field(default_factory=dict)
    met: bool = False
    """The control plane has answered once: while it restarts, it is waited for."""


Flow = Generator[Send | Pause, Answer | Lost | None, T]


def request(memory: Memory, call: Call[T]) -> Flow[T]:
    """Send a request of `calls` to the control plane. While that restarts, what is safe to send again is.

    Raises:
        HeadraceError: what the platform said; Unreachable when it does not answer.
    """
    return (yield from tagged(memory, call))[0]


def tagged(memory: Memory, call: Call[T]) -> Flow[tuple[T, str]]:
    """`request`, and the ETag of what was read; empty where there is none."""
    headers = {**call.headers, **({"idempotency-key": call.key} if call.key else {})}
    content = None
    if call.body is not None:
        content = msgspec.json.encode(call.body)
        headers["content-type"] = "application/json"
    repeatable = call.method == "GET" or call.key is not None
    send = Send("control", call.method, call.path, call.query, content, headers)
    answer = yield from patiently(memory, send, repeatable)
    found: T = calls.read(call.reply, answer.status, answer.content)
    return found, answer.headers.get("etag", "")


def patiently(memory: Memory, send: Send, repeatable: bool) -> Flow[Answer]:
    """Send until there is an answer, for as long as a control plane that was there needs to restart."""
    end = time.monotonic() + RETRY_S
    while True:
        answer = yield send
        if isinstance(answer, Answer):
            memory.met = True
            return answer
        assert isinstance(answer, Lost)
        memory.met = memory.met or not answer.refused
        if not memory.met or not (repeatable or answer.refused) or time.monotonic() > end:
            raise answer.error()
        yield Pause(RETRY_PAUSE_S)
