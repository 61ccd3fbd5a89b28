"""Brings one artifact into the node's cache: ``python -m headrace.registry.pull``, its PullSpec as the first line of
standard input, PullEvents on standard output.

A process of its own: whoever waits for it cannot be held up by a storage that is, and the credentials are in no process
that runs a model.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from headrace.core.errors import HeadraceError, RetryLater
from headrace.core.process import Events
from headrace.core.storage import PullEvent, PullSpec
from headrace.registry.cache import Cache
from headrace.registry.s3 import S3Store

TELL_S = 0.5
"""Pause between two lines of progress."""


class Teller:
    """Tells of progress, not too often."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._next = 0.0

    def __call__(self, done: int) -> None:
        """So many bytes are there."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + TELL_S
            self._events.send(PullEvent("pulling", done))


def run(spec: PullSpec, events: Events) -> int:
    """Pull; 0 when the artifact is there."""
    try:
        cache = Cache(Path(spec.folder), spec.cache_max_bytes)
        asyncio.run(cache.pull(S3Store(spec.source), spec.digest, spec.size_bytes, Teller(events)))
    except HeadraceError as error:
        events.send(PullEvent("unavailable" if isinstance(error, RetryLater) else "failed", detail=error.message))
        return 3
    except OSError as error:
        events.send(PullEvent("failed", detail=f"the node's artifact cache cannot be used: {error.strerror}"))
        return 3
    events.send(PullEvent("ready", spec.size_bytes))
    return 0


def leave_with_node() -> None:
    """End at the end of standard input: the node has gone. What is half pulled stays for whoever goes on."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=PullSpec)
    threading.Thread(target=leave_with_node, daemon=True).start()
    return run(spec, Events())


if __name__ == "__main__":
    sys.exit(main())
