"""The yardstick: the least that two processes can do between an HTTP request and onnxruntime.

A front (uvloop, httptools) forwards each body unread over one framed Unix socket; a replica decodes whatever has
arrived by the time it is free, runs it as one batch and answers. No keys, tenants, policy, deadline, validation or
telemetry: what the product costs above this is what its features cost.

    python -m bench.prototype --model trees.onnx --port 8900 [--front-core 0] [--replica-core 1] [--canary]

With ``--canary`` every tenth request goes to a second replica process on the same core: the least that a canary costs
which shares no process with the version that it may have to give way to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httptools
import msgspec
import numpy as np
import uvloop

from bench import models

HEADER = struct.Struct("<II")
"""Length of the payload and request id."""
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
EMPTY = b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n"


class Rows(msgspec.Struct):
    inputs: list[list[float]]


class Frames(asyncio.Protocol):
    """Cuts a byte stream into frames."""

    transport: Any = None
    rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self.rest + data if self.rest else data
        frames, at, view = [], 0, memoryview(data)
        while len(data) - at >= HEADER.size:
            length, request = HEADER.unpack_from(data, at)
            end = at + HEADER.size + length
            if end > len(data):
                break
            frames.append((request, view[at + HEADER.size : end]))
            at = end
        self.rest = data[at:]
        self.on_frames(frames)

    def on_frames(self, frames: list[tuple[int, memoryview]]) -> None:
        raise NotImplementedError


class Replica(Frames):
    """One batch per tick of the loop: requests that arrive during a run wait together for the next."""

    def __init__(self, loop: asyncio.AbstractEventLoop, model: Path) -> None:
        self.loop = loop
        self.run = models.session(model).run
        self.pending: list[tuple[int, memoryview]] = []

    def on_frames(self, frames: list[tuple[int, memoryview]]) -> None:
        if not self.pending:
            self.loop.call_soon(self.flush)
        self.pending += frames

    def flush(self) -> None:
        pending, self.pending = self.pending, []
        asked = [(request, decode(payload).inputs) for request, payload in pending]
        batch = np.array([row for _, rows in asked for row in rows], np.float32)
        answers = self.run(["probabilities"], {"x": batch})[0].tolist()
        out: list[bytes] = []
        at = 0
        for request, rows in asked:
            body = encode({"outputs": answers[at : at + len(rows)]})
            at += len(rows)
            out += (HEADER.pack(len(body), request), body)
        self.transport.write(b"".join(out))

    def connection_lost(self, exc: Exception | None) -> None:
        self.loop.stop()


decode = msgspec.json.Decoder(Rows).decode
encode = msgspec.json.Encoder().encode


class Link(Frames):
    """The front's side of the socket: many requests over one connection, written once per tick."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting: dict[int, Http] = {}
        self.out: list[bytes] = []
        self.last = 0

    def ask(self, client: Http, body: bytes) -> None:
        self.last = request = (self.last + 1) & 0xFFFFFFFF
        self.waiting[request] = client
        if not self.out:
            self.loop.call_soon(self.flush)
        self.out += (HEADER.pack(len(body), request), body)

    def flush(self) -> None:
        data, self.out = b"".join(self.out), []
        self.transport.write(data)

    def on_frames(self, frames: list[tuple[int, memoryview]]) -> None:
        for request, payload in frames:
            client = self.waiting.pop(request)
            if client.transport is not None:  # a write to a client that has gone would raise into this link
                client.transport.write(OK % (len(payload), payload))


class Http(asyncio.Protocol):
    """One client connection."""

    __slots__ = ("ask", "body", "headers", "parser", "transport", "url")

    def __init__(self, ask: Callable[[Http, bytes], None]) -> None:
        self.ask = ask
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(EMPTY % 400)
            self.transport.close()

    def on_message_begin(self) -> None:
        self.body = self.url = b""
        self.headers: dict[bytes, bytes] = {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name] = value

    def on_body(self, chunk: bytes) -> None:
        self.body = self.body + chunk if self.body else chunk

    def on_message_complete(self) -> None:
        if self.url == b"/predict":
            self.ask(self, self.body)
        else:
            self.transport.write(EMPTY % 404)


def replica(path: str, model: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front stops us by closing the socket
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(loop.create_unix_server(lambda: Replica(loop, model), path))
    print("ready", flush=True)
    loop.run_forever()


def tenth(main: Link, canary: Link) -> Callable[[Http, bytes], None]:
    """Sends every tenth request to the canary."""
    turn = itertools.cycle([main.ask] * 9 + [canary.ask])
    return lambda client, body: next(turn)(client, body)


async def front(paths: list[str], port: int) -> None:
    loop = asyncio.get_running_loop()
    links = [(await loop.create_unix_connection(lambda: Link(loop), path))[1] for path in paths]
    ask = links[0].ask if len(links) == 1 else tenth(*links)
    await loop.create_server(lambda: Http(ask), "127.0.0.1", port, backlog=1024)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", type=Path, required=True)
    arguments.add_argument("--port", type=int, default=8900)
    arguments.add_argument("--front-core", type=int)
    arguments.add_argument("--replica-core", type=int)
    arguments.add_argument("--canary", action="store_true")
    arguments.add_argument("--replica-socket", help=argparse.SUPPRESS)
    a = arguments.parse_args()
    core = a.replica_core if a.replica_socket else a.front_core
    if a.replica_socket:
        if core is not None:
            os.sched_setaffinity(0, {core})
        return replica(a.replica_socket, a.model)
    with tempfile.TemporaryDirectory(prefix="hrb-") as folder, contextlib.ExitStack() as stack:
        paths = [str(Path(folder) / f"replica-{k}.sock") for k in range(1 + a.canary)]
        pinned = [] if a.replica_core is None else ["--replica-core", str(a.replica_core)]
        for path in paths:
            command = [sys.executable, "-m", "bench.prototype", "--model", str(a.model), "--replica-socket", path]
            child = stack.enter_context(subprocess.Popen([*command, *pinned], stdout=subprocess.PIPE))
            stack.callback(child.terminate)
            assert child.stdout is not None
            child.stdout.readline()
        if core is not None:
            os.sched_setaffinity(0, {core})
        uvloop.run(front(paths, a.port))


if __name__ == "__main__":
    main()
