"""The replica process: ``python -m headrace.server.main``, its ReplicaSpec as the first line of standard input.

Life: loading -> warming -> ready, each written to standard output as a ReplicaEvent line; then it serves until SIGTERM
or the end of its standard input (its node has gone). It then tells its routers to send nothing new (GOAWAY), answers
what it has, and leaves when they have closed their links or `drain_s` is over.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import uvloop

from headrace.core import frames, telemetry
from headrace.core.addresses import Listener
from headrace.core.errors import HeadraceError
from headrace.core.peer import ControlPeer
from headrace.core.process import Events, watch_stop
from headrace.core.report import Hello, ReplicaReport
from headrace.core.specs import ReplicaEvent, ReplicaSpec, ServedVersion
from headrace.core.verified import verify
from headrace.server.engines.load import load, preload
from headrace.server.engines.onnx_form import find as find_form
from headrace.server.engines.port import Engine, warm_inputs
from headrace.server.link import RouterLink
from headrace.server.pack import Pack
from headrace.server.slot import Slot
from headrace.server.watchdog import Watchdog

log = logging.getLogger("headrace.server")
WARM_RUNS = 3
WARM_S = 0.02
"""No further warm-up run once those before took so long: what the runs shall tell is whether one is quick."""


@dataclass(frozen=True, slots=True)
class Warm:
    """A loaded engine that has run, and how long its quickest run took."""

    engine: Engine
    run_s: float


class Replica:
    """The slots, the links, and the tick that joins them."""

    def __init__(self, spec: ReplicaSpec, engines: list[Warm], loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self.loop = loop
        self.links: set[RouterLink] = set()
        self.slots = [
            Slot(served, warm.engine, warm.run_s, self.schedule, loop.call_soon_threadsafe)
            for served, warm in zip(spec.versions, engines, strict=True)
        ]
        self.active: set[Slot] = set()
        """The slots with something to do."""
        self.pack: Pack | None = None
        self._scheduled = False

    def schedule(self) -> None:
        """Pump the slots and flush the links at the end of this loop tick."""
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._scheduled = False
        for slot in list(self.active):
            slot.pump()
            if slot.rests:
                self.active.discard(slot)
        if self.pack is not None:
            self.pack.turn()
        for link in self.links:
            link.flush()

    @property
    def idle(self) -> bool:
        """All that came was answered."""
        return all(slot.idle for slot in self.slots)

    def report(self) -> bytes:
        """The report since the last one, as the control plane reads it."""
        pack = self.pack
        slots = tuple(slot.report() for slot in (self.slots if pack is None else pack.stirred()))
        report = ReplicaReport(self.spec.id, slots, telemetry.rss_bytes(), None if pack is None else pack.report())
        return msgspec.msgpack.encode(report)

    async def leave_unlinked(self, stop: asyncio.Event) -> None:
        """Stop when no router has been linked for `unlinked_s`: nobody will send anything any more."""
        seen = self.loop.time()
        while self.loop.time() - seen < self.spec.unlinked_s:
            await asyncio.sleep(min(self.spec.unlinked_s / 10, 1.0))
            if self.links:
                seen = self.loop.time()
        log.warning("no router has been linked for %g s", self.spec.unlinked_s)
        stop.set()

    async def drain(self) -> None:
        """Send the routers away and answer what is here; bounded by `drain_s`."""
        for link in list(self.links):
            link.out.append(frames.frame(frames.GOAWAY))
            link.flush()
        end = self.loop.time() + self.spec.drain_s
        while (self.links or not self.idle) and self.loop.time() < end:
            await asyncio.sleep(0.01)


def load_version(
    served: ServedVersion,
    threads: int,
    timings: dict[str, float],
    warming: Callable[[], None],
    forms: str = "",
    runs: int = WARM_RUNS,
    frugal: bool = False,
) -> Warm:
    """Import, verify, load and warm one version, by so many runs. Raises HeadraceError or whatever the model raises."""
    start = time.monotonic()
    preload(served.engine)
    imported = time.monotonic()
    path = Path(served.artifact)
    verify(path, served.digest)
    for part in served.parts:
        verify(Path(part.artifact), part.digest)
    form = find_form(Path(forms), served.digest) if forms and served.engine == "onnx" else None
    verified = time.monotonic()
    engine = load(served.engine, path, served.options, served.signature, threads, served.parts, form, frugal).engine
    loaded = time.monotonic()
    warming()
    run_s = math.inf
    for _ in range(runs):
        started = time.monotonic()
        engine.run(warm_inputs(engine))
        run_s = min(run_s, time.monotonic() - started)
        if time.monotonic() - loaded > WARM_S:
            break
    for name, taken in (
        ("import", imported - start),
        ("verify", verified - imported),
        ("load", loaded - verified),
        ("warm", time.monotonic() - loaded),
    ):
        timings[name] = timings.get(name, 0.0) + taken
    return Warm(engine, run_s)


def load_packed(served: ServedVersion, runs: int) -> tuple[Engine, float]:
    """Load a version beside many others."""
    warm = load_version(served, 1, {}, lambda: None, runs=runs, frugal=True)
    return warm.engine, warm.run_s


async def serve(
    spec: ReplicaSpec, engines: list[Warm], events: Events, timings: dict[str, float], watchdog: Watchdog
) -> None:
    """Answer routers until told to stop."""
    loop = asyncio.get_running_loop()
    replica = Replica(spec, engines, loop)
    watchdog.watch(replica.slots)
    pack = None
    if spec.pack is not None:
        pack = replica.pack = Pack(spec.pack, replica, load_packed, events.send, loop)
    stop = watch_stop(loop, None if pack is None else pack.change, with_parent=not spec.unlinked_s)
    key = bytes.fromhex(spec.key)
    listener = Listener(lambda _: RouterLink(replica), "requests", {spec.id: key}.get)
    await listener.open(spec.address)
    hello = Hello("replica", spec.id, os.getpid())
    peer = ControlPeer(spec.control, hello, replica.report, on_stop=stop.set, key=key)
    peer.start()
    leaving = loop.create_task(replica.leave_unlinked(stop)) if spec.unlinked_s else None
    gc.collect()
    gc.freeze()
    events.send(ReplicaEvent("ready", timings_s=timings, address=listener.address))
    try:
        await stop.wait()
        events.send(ReplicaEvent("draining"))
        listener.close()
        await replica.drain()
    finally:
        if pack is not None:
            pack.close()
        if leaving is not None:
            leaving.cancel()
        await peer.stop()


def run(spec_file: BinaryIO, events: Events) -> int:
    """Load all versions and serve them; 0 after a drain, 3 when a version cannot be served."""
    spec = msgspec.json.decode(spec_file.readline(), type=ReplicaSpec)
    timings: dict[str, float] = {}
    engines: list[Warm] = []
    events.send(ReplicaEvent("loading"))
    watchdog = Watchdog(events.send, spec.memory_mb)
    watchdog.start()
    if spec.pack is not None:
        preload("onnx")  # before it is measured what the process takes without models
        events.send(ReplicaEvent("warming"))
    for served in spec.versions:
        try:
            warm = load_version(served, spec.threads, timings, lambda: events.send(ReplicaEvent("warming")), spec.forms)
            engines.append(warm)
        except HeadraceError as error:
            events.send(ReplicaEvent("failed", error.message))
            return 3
        except Exception as error:  # whatever a model raises
            log.exception("%s@%d does not load", served.model, served.version)
            text = (str(error).splitlines() or [""])[0][:500]
            events.send(ReplicaEvent("failed", f"{type(error).__name__}: {text}"))
            return 3
    uvloop.run(serve(spec, engines, events, timings, watchdog))
    watchdog.stop()
    for warm in engines:
        warm.engine.close()
    return 0


def main() -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to hear; it tells us
    return run(sys.stdin.buffer, Events())


if __name__ == "__main__":
    sys.exit(main())
