"""The product's full path beside the bare two-hop prototype and three packaged servers, all in one run.

    python -m bench.dataplane [--quick] [--only prototype,product,...]

The same model (100 trees, one row of 30 floats, ``probabilities``), the same 512 rows, wrk with 64 connections and
with one. The product checks a key of one of 8 tenants, its quota, the deadline, decides the version by a sticky hash,
validates, batches, counts and passes the trace on; the others do none of that. Servers run one after another, in
rounds, so that a change of the machine's mood meets all of them; the figures are medians over the rounds, the ratios
medians of the rounds' own ratios.
"""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import models, servers
from bench.harness import Bar, Load, fail, median, need_wrk, parser, report, say, scratch, wrk, wrk_script
from bench.product import Product, product

MODEL = "trees"
TENANTS = 8
BARS = (
    Bar("ratio_to_prototype", at_least=0.7),
    Bar("ratio_to_prototype_canary", at_least=0.6),
    Bar("ratio_to_mosec", at_least=1.0),
    Bar("ratio_to_fastapi", at_least=8.0),
    Bar("ratio_to_bentoml", at_least=40.0),
    Bar("p99_ms_c64", at_most=3.0),
    Bar("p50_ms_c1", at_most=0.25),
    Bar("router_rss_mb", at_most=120.0),
)


@dataclass
class Contender:
    """A server under test and what its rounds gave."""

    name: str
    port: int
    script: Path
    many: list[Load] = field(default_factory=list)
    one: list[Load] = field(default_factory=list)


def deploy_trees(running: Product, builds: list[Path]) -> Path:
    """Register and deploy the model; the wrk script of requests to it."""
    keys: list[str] = []
    for build in builds:
        version = running.push(MODEL, build, engine="onnx", options={"outputs": ["probabilities"]})
        keys = keys or running.tenant_keys(TENANTS, MODEL)
        running.deploy(MODEL, version)
    if len(builds) == 2:
        running.split(MODEL, {1: 90.0, 2: 10.0})
    running.place()
    path = f"/v2/models/{MODEL}/infer"
    return wrk_script(running.folder / "product.lua", models.product_requests(path, keys))


def answers(port: int, seconds: float = 30.0) -> None:
    """Until the server answers a prediction: some listen before they can."""
    end = time.monotonic() + seconds
    body = models.bare_requests()[0].partition(b"\r\n\r\n")[2]
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                if reply.status == 200:
                    return
        except OSError as error:
            if time.monotonic() > end:
                fail(f"port {port} does not answer: {error}")
        time.sleep(0.1)


@contextlib.contextmanager
def contender(name: str, folder: Path, builds: list[Path]) -> Iterator[tuple[Contender, Product | None]]:
    """Start one server."""
    home = folder / name
    home.mkdir()
    if name.startswith("product"):
        with product(home) as running:
            script = deploy_trees(running, builds if name == "product_canary" else builds[:1])
            yield Contender(name, running.http_port, script), running
        return
    bare = wrk_script(home / "bare.lua", models.bare_requests())
    log = home / "log"
    if name in ("prototype", "prototype_canary"):
        start = servers.prototype(builds[0], log, canary=name == "prototype_canary")
    else:
        start = servers.rival(name, builds[0], log)
    with start as port:
        answers(port)
        yield Contender(name, port, bare), None


def measure(one: Contender, seconds: float) -> None:
    """A round of one server, warmed up first."""
    wrk(one.port, one.script, connections=64, seconds=1)
    one.many.append(wrk(one.port, one.script, connections=64, seconds=seconds))
    one.one.append(wrk(one.port, one.script, connections=1, seconds=max(1.0, seconds / 2)))
    say(
        f"  {one.name:<15} {one.many[-1].rps:>9.0f} requests/s, p99 {one.many[-1].p99_ms:.2f} ms; "
        f"one connection p50 {one.one[-1].p50_ms:.3f} ms"
    )


def ratio(a: Contender | None, b: Contender | None) -> float | None:
    """Median over the rounds of a's rate to b's in the same round."""
    if a is None or b is None:
        return None
    return median([x.rps / y.rps for x, y in zip(a.many, b.many, strict=True)])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--only", help="comma-separated contenders", default="")
    a = arguments.parse_args()
    need_wrk()
    rounds, seconds = (3, 2.0) if a.quick else (7, 5.0)
    wanted = ["prototype", "prototype_canary", "product", "product_canary", *servers.RIVALS]
    if a.only:
        wanted = [name for name in wanted if name in a.only.split(",")]
    skipped = {name: why for name in wanted if name in servers.RIVALS and (why := servers.rival_missing(name))}
    for why in skipped.values():
        say(f"SKIPPED: {why}")
    with scratch() as folder, contextlib.ExitStack() as stack:
        builds = [models.trees(folder / f"trees-{build}.onnx", build) for build in ("1", "2")]
        running: list[Contender] = []
        platform: Product | None = None
        for name in wanted:
            if name not in skipped:
                one, its = stack.enter_context(contender(name, folder, builds))
                running.append(one)
                platform = its if name == "product" else platform
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for one in running:
                measure(one, seconds)
        by = {one.name: one for one in running}
        ours, canary = by.get("product"), by.get("product_canary")
        figures: dict[str, float | None] = {
            "ratio_to_prototype": ratio(ours, by.get("prototype")),
            "ratio_to_prototype_canary": ratio(canary, by.get("prototype")),
            "ratio_of_prototypes_canary": ratio(by.get("prototype_canary"), by.get("prototype")),
            "ratio_canary_to_prototype_canary": ratio(canary, by.get("prototype_canary")),
            "ratio_to_mosec": ratio(ours, by.get("mosec")),
            "ratio_to_fastapi": ratio(ours, by.get("fastapi")),
            "ratio_to_bentoml": ratio(ours, by.get("bentoml")),
            "p99_ms_c64": median([load.p99_ms for load in ours.many]) if ours else None,
            "p99_ms_c64_canary": median([load.p99_ms for load in canary.many]) if canary else None,
            "p50_ms_c1": median([load.p50_ms for load in ours.one]) if ours else None,
            "router_rss_mb": platform.router_rss_mb() if platform else None,
        }
        for one in running:
            figures[f"rps_{one.name}"] = median([load.rps for load in one.many])
        for one in running:
            figures[f"p50_ms_c1_{one.name}"] = median([load.p50_ms for load in one.one])
        context = {
            "rounds": rounds,
            "seconds": seconds,
            "connections": [64, 1],
            "placing": "front on the first core, model on the second; wrk, mosec and bentoml on both",
            "skipped": skipped,
        }
        report("dataplane", figures, context, BARS)


if __name__ == "__main__":
    main()
