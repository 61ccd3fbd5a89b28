"""What an engine does to the process that it alone lives in, as a line of JSON.

``python -m tests.conformance.engine_process ENGINE PATH OPTIONS``
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from statistics import median

import msgspec

from headrace.core.specs import EngineOptions
from headrace.server.engines.load import load
from headrace.server.engines.port import Engine, example

LOADS = 50
ROWS = 5_000
RUNS = 3
ROUNDS = 9


class Seen(msgspec.Struct):
    """The answer."""

    closed_bytes: int
    """Growth of the process by `LOADS` engines that were loaded, run and closed."""
    kept_bytes: int
    """The same, not closed: what the figure above would be if closing freed nothing."""
    shared: dict[int, float]
    """`threads` -> share of the computing that other threads than the caller's did in large runs."""


def resident() -> int:
    """Bytes of memory that the process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Subject:
    """An artifact to load time and again."""

    def __init__(self, engine: str, path: str, options: str) -> None:
        self.engine, self.path = engine, Path(path)
        self.options = msgspec.json.decode(options, type=EngineOptions | None)

    def used(self, threads: int, rows: int) -> Engine:
        """Load, and run on this many rows."""
        engine = load(self.engine, self.path, self.options, None, threads).engine
        engine.run(example(engine.signature, rows))
        return engine

    def shared(self, threads: int) -> float:
        """See `Seen.shared`."""
        engine = self.used(threads, ROWS)
        batch = example(engine.signature, ROWS)
        shares = []
        for _ in range(ROUNDS):
            whole, own = time.process_time_ns(), time.thread_time_ns()
            for _ in range(RUNS):
                engine.run(batch)
            own, whole = time.thread_time_ns() - own, time.process_time_ns() - whole
            shares.append(1 - own / whole)
        engine.close()
        # The median: threads that loading used spin for a while before they sleep.
        return median(shares)

    def seen(self) -> Seen:
        """All of it."""
        for _ in range(5):
            self.used(1, 1).close()
        start = resident()
        for _ in range(LOADS):
            self.used(1, 1).close()
        closed = resident()
        kept = [self.used(1, 1) for _ in range(LOADS)]
        grown = resident()
        for engine in kept:
            engine.close()
        return Seen(closed - start, grown - closed, {threads: self.shared(threads) for threads in (1, 2)})


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(Subject(*sys.argv[1:]).seen()).decode() + "\n")
