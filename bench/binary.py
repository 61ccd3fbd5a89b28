"""How much of a socket's speed is left for large binary tensors?

    python -m bench.binary [--quick]

wrk posts 1 MB FP32 tensors (binary extension of the Open Inference Protocol) over four connections to a model that
sums the row, and, in turn, to a bare copy: a server that reads each body into one buffer and answers two bytes. The
platform moves every byte twice (client to router, router to replica); a second bare copy that passes the bytes on over
a Unix socket shows what that alone costs.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench import models
from bench.harness import (
    ROOT,
    Bar,
    free_port,
    median,
    need_wrk,
    parser,
    process,
    report,
    say,
    scratch,
    wait_for_port,
    wait_until,
    wrk,
    wrk_script,
)
from bench.heavy import binary_request
from bench.product import product

MODEL = "sum"
FLOATS = 262_144
"""1 MiB."""
CONNECTIONS = 4
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


# ------------------------------------------------------------------------------------------------ bare copy
def read_request(client: socket.socket, buffer: bytearray) -> memoryview | None:
    """One request with all of its body; None at the end of the connection."""
    view, have, size = memoryview(buffer), 0, 0
    while not size or have < size:
        got = client.recv_into(view[have:])
        if got == 0:
            return None
        have += got
        if not size and (end := buffer.find(b"\r\n\r\n", 0, have)) >= 0:
            at = buffer.index(b"Content-Length: ", 0, end) + 16
            size = end + 4 + int(buffer[at : buffer.index(b"\r\n", at)])
    return view[:have]


def copy_connection(client: socket.socket, onward: str) -> None:
    """Read requests, pass them on where there is somewhere to, answer."""
    buffer = bytearray(FLOATS * 4 + 65_536)
    with client, socket.socket(socket.AF_UNIX) as there:
        if onward:
            there.connect(onward)
        while (request := read_request(client, buffer)) is not None:
            if onward:
                there.sendall(request)
                there.recv(2)
            client.sendall(REPLY)


def sink_connection(client: socket.socket) -> None:
    """The far end of the second copy."""
    buffer = bytearray(FLOATS * 4 + 65_536)
    with client:
        while read_request(client, buffer) is not None:
            client.sendall(b"ok")


def serve_copy(port: int, sink: str) -> None:
    """The process that wrk speaks with; `sink`: where it passes the bytes on."""
    near = socket.create_server(("127.0.0.1", port), backlog=64)
    accept(near, lambda client: copy_connection(client, sink))


def serve_sink(path: str) -> None:
    """The process at the far end of the second copy."""
    far = socket.socket(socket.AF_UNIX)
    far.bind(path)
    far.listen(64)
    accept(far, sink_connection)


def accept(listening: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    """A thread per connection, for ever: receiving and sending release the interpreter's lock."""
    while True:
        client, _ = listening.accept()
        threading.Thread(target=handle, args=(client,), daemon=True).start()


# ------------------------------------------------------------------------------------------------ the bench
def copy_command(*options: object) -> list[str]:
    """How to start a copy in a process of its own."""
    return [sys.executable, "-m", "bench.binary", *map(str, options)]


def measure(folder: Path, rounds: int, seconds: float) -> None:
    """Platform and copies in turn."""
    tensor = np.random.default_rng(0).normal(size=(1, FLOATS)).astype(np.float32)
    one, two, sink = free_port(), free_port(), folder / "sink.sock"
    with (
        product(folder / "up") as running,
        process(copy_command("--serve-copy", one), cwd=ROOT) as first,
        process(copy_command("--serve-sink", sink), cwd=ROOT),
        process(copy_command("--serve-copy", two, "--sink", sink), cwd=ROOT) as second,
    ):
        version = running.push(MODEL, models.row_sum(folder / "sum.onnx"), engine="onnx")
        running.deploy(MODEL, version)
        keys = running.tenant_keys(1, MODEL)
        wait_for_port(one, first)
        wait_for_port(two, second)
        wait_until(sink.exists, "the far end of the second copy")
        request = binary_request(f"/v2/models/{MODEL}/infer", keys[0], "x", tensor)
        script = wrk_script(folder / "tensor.lua", [request])
        rates: dict[str, list[float]] = {"platform": [], "socket_copy": [], "two_hop_copy": []}
        ports = {"platform": running.http_port, "socket_copy": one, "two_hop_copy": two}
        for _ in range(rounds):
            for name, port in ports.items():
                load = wrk(port, script, connections=CONNECTIONS, seconds=seconds)
                rates[name].append(load.rps * FLOATS * 4 / 1e6)
                say(f"  {name:<13} {rates[name][-1]:>8.0f} MB/s, p99 {load.p99_ms:.2f} ms")
        pairs = [zip(rates["platform"], rates[name], strict=True) for name in ("socket_copy", "two_hop_copy")]
        figures = {
            "ratio_to_socket_copy": median([a / b for a, b in pairs[0]]),
            "ratio_to_two_hop_copy": median([a / b for a, b in pairs[1]]),
            **{f"mb_per_s_{name}": median(values) for name, values in rates.items()},
            "router_rss_mb": running.router_rss_mb(),
        }
        context = {"bytes": FLOATS * 4, "connections": CONNECTIONS, "rounds": rounds, "seconds": seconds}
        report("binary", figures, context, (Bar("ratio_to_socket_copy", at_least=0.6),))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--serve-copy", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("--serve-sink", help=argparse.SUPPRESS)
    arguments.add_argument("--sink", default="", help=argparse.SUPPRESS)
    a = arguments.parse_args()
    if a.serve_copy:
        return serve_copy(a.serve_copy, a.sink)
    if a.serve_sink:
        return serve_sink(a.serve_sink)
    need_wrk()
    rounds, seconds = (3, 2.0) if a.quick else (7, 4.0)
    with scratch() as folder:
        measure(folder, rounds, seconds)


if __name__ == "__main__":
    main()
