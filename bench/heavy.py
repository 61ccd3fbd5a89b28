"""A model that takes its time: the platform beside bare onnxruntime at its best batch, on the same cores.

    python -m bench.heavy [--quick] [--sla-ms 2000]

Open-NSFW (ResNet-50, 224 x 224 x 3 FP32 images as binary tensors, 602 kB each). Bare: a loop over one batch size after
another, with as many threads as there are cores, no network, no decoding. The platform: one replica with as many
threads, wrk with many connections of one image each, so that the batches must form by themselves. wrk and the router
use the same cores as the engine: what they take is in the figure.
"""

from __future__ import annotations

import json
import time

import numpy as np

from bench import models
from bench.harness import (
    CORES,
    Bar,
    median,
    need_wrk,
    parser,
    percentile,
    report,
    say,
    scratch,
    wrk,
    wrk_script,
)
from bench.product import product

MODEL = "nsfw"
SHAPE = (224, 224, 3)
BATCHES = (1, 2, 4, 8, 16)
CONNECTIONS = 16


def bare_images_per_s(batch: int, seconds: float) -> float:
    """onnxruntime alone, in a loop."""
    run = models.session(models.nsfw(), threads=len(CORES)).run
    images = np.random.default_rng(0).normal(size=(batch, *SHAPE)).astype(np.float32)
    run(None, {"input:0": images})
    started, count = time.monotonic(), 0
    while time.monotonic() < started + seconds:
        run(None, {"input:0": images})
        count += batch
    return count / (time.monotonic() - started)


def binary_request(path: str, key: str, name: str, tensor: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    """An Open Inference Protocol request whose tensor follows the JSON as bytes."""
    data = tensor.astype("<f4").tobytes()
    entry = {
        "name": name,
        "shape": list(tensor.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    headers = f"Authorization: Bearer {key}\r\nInference-Header-Content-Length: {len(head)}\r\n"
    return models.http(path, head + data, headers).replace(b"application/json", b"application/octet-stream", 1)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sla-ms", type=float, default=2000.0, help="bar of the p99")
    a = arguments.parse_args()
    need_wrk()
    rounds, seconds = (2, 3.0) if a.quick else (5, 10.0)
    with scratch() as folder, product(folder / "up") as running:
        version = running.push(MODEL, models.nsfw(), engine="onnx")
        running.deploy(MODEL, version, threads=len(CORES))
        keys = running.tenant_keys(1, MODEL)
        images = np.random.default_rng(0).normal(size=(4, 1, *SHAPE)).astype(np.float32)
        path = f"/v2/models/{MODEL}/infer"
        script = wrk_script(folder / "images.lua", [binary_request(path, keys[0], "input:0", x) for x in images])
        by_batch = {batch: bare_images_per_s(batch, seconds / 2) for batch in BATCHES}
        best = max(by_batch, key=lambda batch: by_batch[batch])
        say("  bare: " + ", ".join(f"{rate:.1f}/s at {batch}" for batch, rate in by_batch.items()))
        wrk(running.http_port, script, connections=CONNECTIONS, seconds=1)
        bare, loads = [], []
        for _ in range(rounds):
            bare.append(bare_images_per_s(best, seconds))
            loads.append(wrk(running.http_port, script, connections=CONNECTIONS, seconds=seconds))
            say(f"  bare {bare[-1]:.1f} images/s, platform {loads[-1].rps:.1f}, p99 {loads[-1].p99_ms:.0f} ms")
        figures = {
            "ratio_to_bare": median([load.rps / alone for load, alone in zip(loads, bare, strict=True)]),
            "p99_ms": percentile([load.p99_ms for load in loads], 0.5),
            "p50_ms": median([load.p50_ms for load in loads]),
            "images_per_s": median([load.rps for load in loads]),
            "bare_images_per_s": median(bare),
        }
        context = {
            "model": "open-nsfw.onnx",
            "best_batch": best,
            "bare_by_batch": {str(batch): round(rate, 2) for batch, rate in by_batch.items()},
            "connections": CONNECTIONS,
            "threads": len(CORES),
            "rounds": rounds,
            "seconds": seconds,
        }
        report("heavy", figures, context, (Bar("ratio_to_bare", at_least=0.95), Bar("p99_ms", at_most=a.sla_ms)))


if __name__ == "__main__":
    main()
