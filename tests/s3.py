"""A real S3 server (SeaweedFS, one process) and a proxy before it that misbehaves on request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from headrace.core.storage import S3Spec
from headrace.registry.s3_leftovers import sign

ACCESS, SECRET = "test-access", "test-secret"
START_S = 60.0
PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")


class Server:
    """One server on a folder; may be killed and started again on the same ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self._process: subprocess.Popen[bytes] | None = None
        user = {"name": "test", "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [user]}))
        (folder / "data").mkdir()

    def start(self) -> None:
        program = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
        flags = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self._folder / 'data'}", "-s3"]
        flags += [f"-s3.config={self._folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        flags += ["-master.volumeSizeLimitMB=256", "-volume.max=64", "-volume.preStopSeconds=0"]
        flags += ["-master.telemetry=false"]
        for name, port in self._ports.items():
            part, dot, kind = name.partition(".")
            flags.append(f"-{part}.port{dot}{kind}={port}")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "server", *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.bucket("ready-" + secrets.token_hex(4))

    def bucket(self, name: str) -> S3Spec:
        """A new bucket. The server takes a while after its start: it is asked until it does."""
        spec = S3Spec(name, "models", self.endpoint, "", ACCESS, SECRET)
        end = time.monotonic() + START_S
        while True:
            headers = sign(spec, "us-east-1", "PUT", urlsplit(self.endpoint).netloc, f"/{name}", "")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.put(f"{self.endpoint}/{name}", headers=headers).status_code == 200:
                    return spec
            log = (self._folder / "log").read_text(errors="replace")
            assert time.monotonic() < end, log[-2000:]
            assert self._process is not None and self._process.poll() is None, log[-2000:]
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


@contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass
class Faults:
    """What the proxy does; may be changed at any time."""

    refuse: int = 0
    """So many next requests get 503."""
    cut_after: int = 0
    """The next connection that has carried so many bytes of answers is cut, once."""
    bytes_per_s: float = 0.0
    """Of answers, on each connection."""
    down: bool = False
    """Connections are closed at once."""
    turned_away: int = 0
    """Connections that were closed at once so far."""
    answered: int = 0
    """Bytes of answers so far."""


class Proxy:
    """Passes bytes on to a server, with faults."""

    def __init__(self, endpoint: str) -> None:
        at = urlsplit(endpoint)
        assert at.hostname is not None and at.port is not None
        self._to = (at.hostname, at.port)
        self.faults = Faults()
        self.endpoint = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                await self._pass(reader, writer)
            finally:
                writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.faults.down:
            self.faults.turned_away += 1
            return
        first = await reader.read(65_536)
        if self.faults.refuse > 0 and first:
            self.faults.refuse -= 1
            writer.write(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
            return
        there, back = await asyncio.open_connection(*self._to)
        back.write(first)
        tasks = [asyncio.ensure_future(self._up(reader, back)), asyncio.ensure_future(self._down(there, writer))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            back.close()

    async def _up(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while (data := await reader.read(65_536)) and not self.faults.down:
            back.write(data)
            await back.drain()

    async def _down(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried = 0
        while (data := await there.read(65_536)) and not self.faults.down:
            writer.write(data)
            await writer.drain()
            carried += len(data)
            self.faults.answered += len(data)
            if 0 < self.faults.cut_after <= carried:
                self.faults.cut_after = 0
                return
            if self.faults.bytes_per_s:
                await asyncio.sleep(len(data) / self.faults.bytes_per_s)


@contextmanager
def proxy(endpoint: str) -> Iterator[Proxy]:
    one = Proxy(endpoint)
    try:
        yield one
    finally:
        one.close()
