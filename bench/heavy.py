"""A model that takes its time: the platform beside bare onnxruntime at its best batch, on the same cores.

    python -m bench.heavy [--quick] [--sla-ms 2000]

Open-NSFW (ResNet-50, 224 x 224 x 3 FP32 images as binary tensors, 602 kB each). Bare: a loop over one batch size after
another, with as many threads as there are cores, no network, no decoding. The platform: one replica with as many
threads, wrk with many connections of one image each, so that the batches must form by themselves. wrk and the router
use the same cores as the engine: what they take is in the figure, and in the context as CPU time per image.

Answers come a batch at a time, so how many fall into a window depends on where its ends lie: with batches of 16 and
a few hundred images, by several percent. The platform's rate is therefore taken from batch end to batch end, as Open
Inference Protocol statistics tell them (`inference_count` at `last_inference`), and not from wrk's count.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np

from bench import models
from bench.harness import (
    CORES,
    Bar,
    Load,
    fail,
    median,
    need_wrk,
    parser,
    report,
    say,
    scratch,
    wrk,
    wrk_script,
)
from bench.product import Product, product

MODEL = "nsfw"
SHAPE = (224, 224, 3)
BATCHES = (1, 2, 4, 8, 16)
CONNECTIONS = 16
SETTLE_S = 2.0
"""Load before the measuring begins: queues are filled then, and batches follow one another."""


@dataclass(frozen=True)
class Rate:
    """Images a second, and the CPU time of each by process, in ms."""

    images_per_s: float
    cpu_ms: dict[str, float]


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bare(batch: int, seconds: float) -> Rate:
    """onnxruntime alone, in a loop."""
    run = models.session(models.nsfw(), threads=len(CORES)).run
    images = np.random.default_rng(0).normal(size=(batch, *SHAPE)).astype(np.float32)
    run(None, {"input:0": images})
    started, used, count = time.monotonic(), time.process_time(), 0
    while time.monotonic() < started + seconds:
        run(None, {"input:0": images})
        count += batch
    taken = time.monotonic() - started
    return Rate(count / taken, {"bare": (time.process_time() - used) * 1000 / count})


def platform(running: Product, script: Path, key: str, seconds: float) -> tuple[Rate, Load]:
    """The platform under wrk: its rate between the ends of two batches, the first once the load is steady."""
    pids = {"router": running.router_pid(), "replica": running.replica_pids()[0]}
    loads: list[Load] = []
    duration = SETTLE_S + seconds + 1
    load = threading.Thread(
        target=lambda: loads.append(wrk(running.http_port, script, connections=CONNECTIONS, seconds=duration))
    )
    load.start()
    time.sleep(SETTLE_S)
    before, used = batches(running, key), {name: cpu_s(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    after, taken = batches(running, key), {name: cpu_s(pid) - used[name] for name, pid in pids.items()}
    load.join()
    images = after[0] - before[0]
    if images <= 0 or not loads:
        fail(f"no batch ended within {seconds:g} s")
    rate = images / ((after[1] - before[1]) / 1000)
    return Rate(rate, {name: spent * 1000 / images for name, spent in taken.items()}), loads[0]


def batches(running: Product, key: str) -> tuple[int, int]:
    """Images answered up to the end of the last batch, and when that was, in ms."""
    url = f"http://127.0.0.1:{running.http_port}/v2/models/{MODEL}/stats"
    with urlopen(Request(url, headers={"authorization": f"Bearer {key}"}), timeout=10) as reply:
        (stats,) = json.loads(reply.read())["model_stats"]
    return int(stats["inference_count"]), int(stats["last_inference"])


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
        by_batch = {batch: bare(batch, seconds / 2).images_per_s for batch in BATCHES}
        best = max(by_batch, key=lambda batch: by_batch[batch])
        say("  bare: " + ", ".join(f"{rate:.1f}/s at {batch}" for batch, rate in by_batch.items()))
        wrk(running.http_port, script, connections=CONNECTIONS, seconds=1)
        alone: list[Rate] = []
        served: list[Rate] = []
        loads: list[Load] = []
        for _ in range(rounds):
            alone.append(bare(best, seconds))
            rate, load = platform(running, script, keys[0], seconds)
            served.append(rate)
            loads.append(load)
            say(
                f"  bare {alone[-1].images_per_s:.1f} images/s, platform {rate.images_per_s:.1f}, p99 {load.p99_ms:.0f}"
            )
        figures = {
            "ratio_to_bare": median([s.images_per_s / a.images_per_s for s, a in zip(served, alone, strict=True)]),
            "p99_ms": median([load.p99_ms for load in loads]),
            "p50_ms": median([load.p50_ms for load in loads]),
            "images_per_s": median([rate.images_per_s for rate in served]),
            "bare_images_per_s": median([rate.images_per_s for rate in alone]),
        }
        cpu_ms = {
            name: round(median([rate.cpu_ms[name] for rate in rates]), 2)
            for rates in (alone, served)
            for name in rates[0].cpu_ms
        }
        context = {
            "model": "open-nsfw.onnx",
            "best_batch": best,
            "bare_by_batch": {str(batch): round(rate, 2) for batch, rate in by_batch.items()},
            "cpu_ms_per_image": cpu_ms,
            "connections": CONNECTIONS,
            "threads": len(CORES),
            "rounds": rounds,
            "seconds": seconds,
        }
        report("heavy", figures, context, (Bar("ratio_to_bare", at_least=0.95), Bar("p99_ms", at_most=a.sla_ms)))


if __name__ == "__main__":
    main()
