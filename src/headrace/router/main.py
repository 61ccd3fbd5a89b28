"""The router process: ``python -m headrace.router.main``, its RouterSpec as the first line of standard input.

It serves by the last snapshot on disk until the control plane sends one, and goes on serving when the control plane
is gone. SIGTERM or the end of standard input: it stops accepting, finishes what is in flight, and leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec
import uvloop

from headrace.core import snapshot as snapshots
from headrace.core.peer import ControlPeer
from headrace.core.process import Events, watch_stop
from headrace.core.report import Hello
from headrace.core.specs import ProcessEvent, RouterSpec
from headrace.router.core import SWEEP_S, TRIM_S, Router
from headrace.router.http import Http

log = logging.getLogger("headrace.router")
LINK_WAIT_S = 1.0
SAVE_S = 1.0


class Subscriber:
    """Keeps a router's table at the control plane's latest snapshot, and the last good one on disk."""

    def __init__(self, spec: RouterSpec) -> None:
        self.router = Router(spec)
        self._path = Path(spec.snapshot_path)
        self._incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self._saved = 0
        hello = Hello("router", spec.id, os.getpid())
        self.peer = ControlPeer(spec.control, hello, self.router.report, self._incoming.put_nowait)
        self.router.peer = self.peer

    def restore(self) -> None:
        """Serve by the snapshot on disk, if there is one that can be read."""
        try:
            saved = snapshots.decode(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("the saved snapshot cannot be read: %s", error)
            return
        self.router.table.update(saved)
        self._saved = self.peer.hello.epoch = saved.epoch

    async def follow(self) -> None:
        """Apply snapshots as they come, in order. A new replica is linked before anything is routed to it."""
        table = self.router.table
        while True:
            change = snapshots.decode(await self._incoming.get())
            try:
                change = table.snapshot.against(change)
            except ValueError as error:
                log.warning("asking for a whole snapshot: %s", error)
                self.peer.acknowledge(0)
                continue
            fresh = table.links_for(change)
            if fresh:
                waits = asyncio.gather(*(link.connected.wait() for link in fresh))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(waits, LINK_WAIT_S)
            table.update(change)
            self.peer.acknowledge(change.epoch)

    def save(self) -> None:
        """Write the snapshot to disk, whole or not at all."""
        state = self.router.table.snapshot
        if state.epoch == self._saved:
            return
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_bytes(snapshots.encode(state.whole()))
        os.replace(temporary, self._path)
        self._saved = state.epoch


async def sweep(router: Router, subscriber: Subscriber) -> None:
    """The periodic work: deadlines every 20 ms, telemetry every 100 ms, slow connections and the snapshot's copy each
    second."""
    next_trim = next_slow = time.monotonic() + SAVE_S
    while True:
        await asyncio.sleep(SWEEP_S)
        now = time.monotonic()
        router.sweep(now)
        if now >= next_trim:
            next_trim = now + TRIM_S
            router.trim()
        if now >= next_slow:
            next_slow = now + SAVE_S
            router.sweep_connections(now)
            try:
                subscriber.save()
            except OSError as error:
                log.warning("the snapshot was not saved: %s", error)


class Listener(Protocol):
    """What a front listens with."""

    port: int

    async def drain(self, drain_s: float) -> None:
        """Accept nothing more; finish what is in flight, bounded."""


class HttpListener:
    """Serves HTTP on the router's port."""

    def __init__(self, router: Router, server: asyncio.Server) -> None:
        self.port: int = server.sockets[0].getsockname()[1]
        self._router = router
        self._server = server

    @classmethod
    async def open(cls, router: Router) -> HttpListener:
        """Start to listen. Raises OSError when the port cannot be had."""
        host, port = router.spec.host, router.spec.port
        loop = asyncio.get_running_loop()
        return cls(router, await loop.create_server(lambda: Http(router), host, port, backlog=4096, reuse_port=True))

    async def drain(self, drain_s: float) -> None:
        """Accept nothing more; finish what is in flight, bounded."""
        self._server.close()
        router = self._router
        router.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + drain_s
        while router.connections and loop.time() < end:
            router.sweep_connections(time.monotonic())
            await asyncio.sleep(0.01)


async def serve(spec: RouterSpec, events: Events, listen: Callable[[Router], Awaitable[Listener]]) -> None:
    """Serve until told to stop."""
    loop = asyncio.get_running_loop()
    stop = watch_stop(loop)
    subscriber = Subscriber(spec)
    router = subscriber.router
    subscriber.restore()
    listener = await listen(router)
    subscriber.peer.start()
    tasks = [loop.create_task(subscriber.follow()), loop.create_task(sweep(router, subscriber))]
    gc.collect()
    gc.freeze()
    events.send(ProcessEvent("ready", listener.port))
    waiting = loop.create_task(stop.wait())
    done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    await listener.drain(spec.drain_s)
    for task in (waiting, *tasks):
        task.cancel()
    await subscriber.peer.stop()
    for task in done - {waiting}:
        task.result()  # a loop that ended by itself has failed: say so


def run(listen: Callable[[Router], Awaitable[Listener]]) -> int:
    """A router process from its first line of standard input to its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = Events()
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=RouterSpec)
    try:
        uvloop.run(serve(spec, events, listen))
    except OSError as error:
        events.send(ProcessEvent("failed", detail=str(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(HttpListener.open))
