"""One pipeline replica beside its own three models, called one after another by the client.

    python -m bench.pipeline [--quick]

Rows of 30 floats are standardised (a Python model), judged by 100 trees (ONNX) and named (a Python model). `pipeline`
runs the three registered versions as steps of one replica, one request a row; `chained` has each deployed by itself and
the client carries every reply to the next: three requests a row. The client is the same loop over binary tensors on
keep-alive connections, so that it costs each request the same; both kinds take turns on the same platform.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tarfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop

from bench import models
from bench.harness import Bar, median, parser, percentile, report, say, scratch
from bench.product import Product, product

CONNECTIONS = 16
SCALE = """
import numpy as np
class Model:
    inputs = [("row", "FP32", (-1, 30))]
    outputs = [("scaled", "FP32", (-1, 30))]
    def predict(self, inputs):
        return np.sign(inputs["row"]) * np.log1p(np.abs(inputs["row"]))
"""
NAME = """
import numpy as np
class Model:
    inputs = [("scores", "FP32", (-1, 2))]
    outputs = [("label", "INT64", (-1,))]
    def predict(self, inputs):
        return (inputs["scores"][:, 1] > 0.5).astype(np.int64)
"""
PIPELINE = """
inputs = [{ name = "row", datatype = "FP32", shape = [-1, 30] }]
outputs = [{ name = "label", from = "name.label" }]

[[steps]]
name = "scale"
model = "scale@1"
inputs = { row = "row" }

[[steps]]
name = "trees"
model = "trees@1"
inputs = { x = "scale.scaled" }

[[steps]]
name = "name"
model = "name@1"
inputs = { scores = "trees.probabilities" }
"""


@dataclass(frozen=True)
class Call:
    """A request to one model, but for its tensor's bytes."""

    head: bytes
    size: int
    """Bytes of its tensor."""

    @staticmethod
    def to(model: str, key: str, tensor: str, shape: Sequence[int]) -> Call:
        """One FP32 tensor in, binary tensors out."""
        size = 4 * int(np.prod(shape))
        entry = {"name": tensor, "shape": list(shape), "datatype": "FP32", "parameters": {"binary_data_size": size}}
        text = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
        lines = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
            f"Inference-Header-Content-Length: {len(text)}\r\nContent-Length: {len(text) + size}\r\n\r\n"
        )
        return Call(lines.encode() + text, size)


@dataclass(frozen=True)
class Rate:
    """Rows a second, and how long one took."""

    rows_per_s: float
    p50_ms: float
    p99_ms: float


async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], call: Call, tensor: bytes) -> bytes:
    """One request; the bytes of the output tensor."""
    reader, writer = streams
    writer.write(call.head + tensor)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    lengths = {
        name: int(value)
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        if name.endswith(b"content-length")
    }
    body = await reader.readexactly(lengths[b"content-length"])
    if not head.startswith(b"http/1.1 200"):
        raise SystemExit(f"bench: {body.decode(errors='replace')}")
    return body[lengths[b"inference-header-content-length"] :]


async def drive(port: int, calls: Sequence[Call], rows: Sequence[bytes], seconds: float) -> tuple[Rate, list[bytes]]:
    """All connections, each a row after another through `calls`; the rate, and what the first rows became."""
    taken: list[float] = []
    answers: dict[int, bytes] = {}
    numbers = itertools.count()
    end = time.monotonic() + seconds

    async def one() -> None:
        streams = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.monotonic()) < end or len(answers) < len(rows):
            number = next(numbers)
            tensor = rows[number % len(rows)]
            for call in calls:
                tensor = await ask(streams, call, tensor)
            taken.append(time.monotonic() - start)
            answers.setdefault(number % len(rows), tensor)
        streams[1].close()

    start = time.monotonic()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    spent = time.monotonic() - start
    rate = Rate(len(taken) / spent, percentile(taken, 0.5) * 1000, percentile(taken, 0.99) * 1000)
    return rate, [answers[k] for k in range(len(rows))]


def register(running: Product, folder: Path) -> None:
    """The three models and the pipeline, all deployed."""
    for name, source in (("scale", SCALE), ("name", NAME)):
        (folder / f"{name}.py").write_text(source)
        running.push(name, folder / f"{name}.py", engine="python")
    running.push("trees", models.trees(folder / "trees.onnx"), engine="onnx", options={"outputs": ["probabilities"]})
    (folder / "pipeline.toml").write_text(PIPELINE)
    with tarfile.open(folder / "whole.tar", "w") as archive:
        archive.add(folder / "pipeline.toml", "pipeline.toml")
    running.push("whole", folder / "whole.tar", engine="pipeline")
    for name in ("scale", "trees", "name", "whole"):
        running.deploy(name, 1)


def main() -> None:
    a = parser(__doc__).parse_args()
    rounds, seconds = (2, 2.0) if a.quick else (7, 8.0)
    with scratch() as folder, product(folder / "up") as running:
        register(running, folder)
        key = running.tenant_keys(1, "whole")[0]
        for name in ("scale", "trees", "name"):
            running.call("PUT", f"/api/v1/models/{name}/grants/team-0")
        rows = [np.array(row, np.float32).tobytes() for row in models.rows()]
        wide = [1, models.WIDTH]
        owner = "default%2F"
        kinds = {
            "chained": [
                Call.to(f"{owner}scale", key, "row", wide),
                Call.to(f"{owner}trees", key, "x", wide),
                Call.to(f"{owner}name", key, "scores", [1, 2]),
            ],
            "pipeline": [Call.to(f"{owner}whole", key, "row", wide)],
        }

        def measure(kind: str, length_s: float) -> tuple[Rate, list[bytes]]:
            run: Callable[[Awaitable[tuple[Rate, list[bytes]]]], tuple[Rate, list[bytes]]] = uvloop.run  # type: ignore[assignment]
            return run(drive(running.http_port, kinds[kind], rows, length_s))

        if measure("chained", 0.5)[1] != measure("pipeline", 0.5)[1]:
            raise SystemExit("bench: the pipeline does not answer as its models do")
        found: dict[str, list[Rate]] = {"chained": [], "pipeline": []}
        for _ in range(rounds):
            for kind, rates in found.items():
                rates.append(measure(kind, seconds)[0])
                say(f"  {kind}: {rates[-1].rows_per_s:.0f} rows/s, p50 {rates[-1].p50_ms:.2f} ms")
        pairs = list(zip(found["pipeline"], found["chained"], strict=True))
        figures = {
            "ratio": median([one.rows_per_s / other.rows_per_s for one, other in pairs]),
            "p50_ratio": median([one.p50_ms / other.p50_ms for one, other in pairs]),
            **{f"{kind}_rows_per_s": median([rate.rows_per_s for rate in rates]) for kind, rates in found.items()},
            **{f"{kind}_p99_ms": median([rate.p99_ms for rate in rates]) for kind, rates in found.items()},
        }
        context = {"connections": CONNECTIONS, "rounds": rounds, "seconds": seconds, "steps": 3}
        report("pipeline", figures, context, (Bar("ratio", at_least=1.5),))


if __name__ == "__main__":
    main()
