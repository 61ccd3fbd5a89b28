"""HTTP by hand: what no client library would send, and what comes back, byte for byte."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headrace.client.client import Client


@dataclass(frozen=True)
class Reply:
    """One response."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def error(self) -> str:
        """The text of an Open Inference Protocol error; it must be one."""
        told: dict[str, str] = json.loads(self.content)
        assert list(told) == ["error"] and "Traceback" not in told["error"], told
        return told["error"]

    @property
    def values(self) -> Any:
        """The first output's data."""
        return json.loads(self.content)["outputs"][0]["data"]


class Wire:
    """Sends to a platform's inference port as its admin."""

    def __init__(self, client: Client) -> None:
        host, _, port = client.access.url.removeprefix("http://").rpartition(":")
        self.address = (host, int(port))
        self.key = client.access.api_key or ""

    def head(self, *lines: str, path: str = "/v2/models/echo/infer", method: str = "POST") -> bytes:
        """A request's head without its empty line."""
        given = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.key}", *lines]
        return "".join(f"{line}\r\n" for line in given).encode("latin-1")

    def request(self, body: bytes, *lines: str, path: str = "/v2/models/echo/infer") -> bytes:
        """A whole POST."""
        return self.head(*lines, f"Content-Length: {len(body)}", path=path) + b"\r\n" + body

    def connect(self) -> socket.socket:
        """A connection whose every wait is bounded."""
        return socket.create_connection(self.address, timeout=20)

    def post(self, body: bytes, *lines: str, path: str = "/v2/models/echo/infer") -> Reply:
        """One POST, one reply, and no word after it."""
        return self.ask(self.request(body, "Connection: close", *lines, path=path))

    def ask(self, *pieces: bytes) -> Reply:
        """A request after which the other side closes: one reply."""
        (reply,) = self.wait(*pieces)
        return reply

    def wait(self, *pieces: bytes) -> list[Reply]:
        """Send, stay silent, and read all that comes until the other side closes."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was read
                for piece in pieces:
                    connection.sendall(piece)
            return list(replies(connection))


def replies(connection: socket.socket) -> Iterator[Reply]:
    """The responses of a connection until it is closed by the other side."""
    with connection.makefile("rb") as stream:
        while True:
            line = stream.readline()
            if not line:
                return
            status, headers = int(line.split()[1]), {}
            while (text := stream.readline().rstrip(b"\r\n").decode("latin-1")) != "":
                name, _, value = text.partition(":")
                headers[name.lower()] = value.strip()
            yield Reply(status, headers, stream.read(int(headers.get("content-length", "0"))))


@contextlib.contextmanager
def answering_throughout(wire: Wire, path: str) -> Iterator[None]:
    """While the block runs, a model is asked again and again; every answer must come and be right."""
    stop = threading.Event()
    wrong: list[object] = []
    asked = 0

    def ask() -> None:
        nonlocal asked
        with wire.connect() as connection:
            answers = replies(connection)
            while not stop.is_set() and not wrong:
                body = infer([[float(asked)]])
                try:
                    connection.sendall(wire.request(body, path=path))
                    reply = next(answers)
                    if reply.status != 200 or reply.values != [float(asked)]:
                        wrong.append(reply)
                except (OSError, StopIteration) as error:
                    wrong.append(error)
                asked += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        first_after = asked + 1
        while thread.is_alive() and asked <= first_after:  # one more, begun after the block
            stop.wait(0.001)
        stop.set()
        thread.join()
    assert not wrong, wrong


def infer(data: object, shape: object = None, name: str = "x", datatype: str = "FP32", **more: Any) -> bytes:
    """An inference request's JSON."""
    rows = len(data) if isinstance(data, list) else 1
    tensor = {"name": name, "shape": shape or [rows, 1], "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()
