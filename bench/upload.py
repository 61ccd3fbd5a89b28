"""From a file on a laptop to answers, and from an artifact on the node to a ready replica.

    python -m bench.upload [--quick]

`upload_to_live_s`: a 100 MB ONNX model that the platform has never seen, from the start of the client's push (which
hashes it) over its upload in parts, examination and deployment to the first prediction. `multi_gb_ready_s`: a 2 GB ONNX
model (as large as the format allows) that was pushed before and whose replicas have been stopped, from the command to
deploy it to the first prediction; `verify_s` is what making sure of its bytes takes of it. The matrices are of one
content, repeated: what costs here is bytes, not their values. Each round's model has a digest of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from bench.harness import Bar, fail, median, parser, report, say, scratch, wait_until
from bench.product import Product, product
from headrace.client.client import Client

SIDE = 2048
MATRIX_BYTES = SIDE * SIDE * 4
SMALL, LARGE = 6, 119
"""Matrices in a model: 100 MB and 2 GB (an ONNX file may have 2 GiB)."""
BUILD = "from bench.upload import write; import pathlib, sys; write(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))"


def write(path: Path, matrices: int, build: int) -> None:
    """A chain of matrix products, FP32 ``x`` [-1, 2048] -> ``y``; builds differ in their digest."""
    import numpy as np
    from onnx import TensorProto, helper

    content = (np.random.default_rng(build).standard_normal((SIDE, SIDE), np.float32) / SIDE**0.5).tobytes()
    names = ["x", *(f"h{k}" for k in range(matrices - 1)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[k], f"w{k}"], [names[k + 1]]) for k in range(matrices)],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIDE])],
        [helper.make_tensor(f"w{k}", TensorProto.FLOAT, [SIDE, SIDE], content, raw=True) for k in range(matrices)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def made(folder: Path, matrices: int, build: int) -> Path:
    """A model file, built by a process whose memory goes with it."""
    path = folder / f"chain-{matrices}-{build}.onnx"
    subprocess.run([sys.executable, "-c", BUILD, str(path), str(matrices), str(build)], check=True)
    return path


def answer(client: Client, model: str) -> None:
    """One prediction."""
    if len(client.predict(model, [[0.0] * SIDE]).outputs["y"][0]) != SIDE:
        fail(f"{model} answers what it should not")


def upload_to_live(client: Client, path: Path, model: str) -> float:
    """Seconds from the push to the first answer."""
    started = time.monotonic()
    client.models.push(model, path)
    client.deploy(f"{model}@1", traffic=100)
    answer(client, model)
    return time.monotonic() - started


def ready(client: Client, running: Product, model: str) -> tuple[float, dict[str, float]]:
    """Seconds from the command to deploy to the first answer, and the replica's own stages."""
    started = time.monotonic()
    client.deploy(f"{model}@1", traffic=100, wait_s=300.0)
    answer(client, model)
    taken = time.monotonic() - started
    stages = running.deployment(model, 1)["instances"][0]["timings_s"]
    client.undeploy(f"{model}@1", force=True)
    wait_until(lambda: not running.replica_pids(), f"{model} to stop", 60.0)
    return taken, dict(stages)


def main() -> None:
    arguments = parser(__doc__)
    a = arguments.parse_args()
    rounds = 1 if a.quick else 3
    matrices = LARGE // 4 if a.quick else LARGE
    with scratch() as folder, product(folder / "up") as running:
        info = running.node()
        key = tomllib.loads((running.folder / "credentials.toml").read_text())["api_key"]
        client = Client(info["http_url"], key, info["control_url"], timeout_s=300.0)
        live = []
        for k in range(rounds):
            live.append(upload_to_live(client, made(folder, SMALL, k), f"small-{k}"))
            client.undeploy(f"small-{k}@1", force=True)
            say(f"  100 MB from push to answer: {live[-1]:.2f} s")
        large = made(folder, matrices, 0)
        size = large.stat().st_size
        started = time.monotonic()
        client.models.push("large", large)
        pushed = time.monotonic() - started
        large.unlink()
        taken, stages = zip(*(ready(client, running, "large") for _ in range(rounds)), strict=True)
        for one, parts in zip(taken, stages, strict=True):
            told = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
            say(f"  {size / 1e9:.2f} GB ready: {one:.2f} s ({told})")
        client.close()
        figures = {
            "upload_to_live_s": median(live),
            "ready_s" if a.quick else "multi_gb_ready_s": median(taken),
            "verify_s": median([parts["verify"] for parts in stages]),
            "load_s": median([parts["load"] for parts in stages]),
            "push_mb_per_s": size / 1e6 / pushed,
        }
        context = {
            "small_bytes": SMALL * MATRIX_BYTES,
            "large_bytes": size,
            "rounds": rounds,
            "each_ready_s": [round(one, 3) for one in taken],
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        }
        bars = (Bar("upload_to_live_s", at_most=10.0), Bar("multi_gb_ready_s", at_most=10.0))
        report("upload", figures, context, bars[:1] if a.quick else bars)  # quickly, it is a quarter of the size


if __name__ == "__main__":
    main()
