"""The servers that `bench.dataplane` compares, each started for the length of a block.

A server of two processes gets a core for each (front, model); one of a single process gets the front's core; one that
spawns processes as it likes gets all cores. wrk runs on whatever core is free: its work per request is the same for
all.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.harness import ALL, BACK, FRONT, ROOT, free_port, process, wait_for_port

RIVALS = ("fastapi", "mosec", "bentoml")


@contextlib.contextmanager
def prototype(model: Path, log: Path, *, canary: bool = False) -> Iterator[int]:
    """The two-hop prototype, perhaps with a second replica that gets a tenth of the requests; yields its port."""
    port = free_port()
    options = ["--front-core", str(min(FRONT)), "--replica-core", str(min(BACK)), *["--canary"] * canary]
    command = [sys.executable, "-m", "bench.prototype", "--model", str(model), "--port", str(port), *options]
    with process(command, log=log, cwd=ROOT) as child:
        wait_for_port(port, child, log)
        yield port


def rival_missing(name: str) -> str | None:
    """Why a rival cannot be measured, or None."""
    if not (ROOT / ".rivals" / name / "installed").exists():
        return f"rival {name} is not installed (make rivals)"
    return None


@contextlib.contextmanager
def rival(name: str, model: Path, log: Path) -> Iterator[int]:
    """A rival from its own environment; yields its port."""
    port = free_port()
    scripts = ROOT / ".rivals" / name / "bin"
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    command, cores = {
        "fastapi": ([f"{scripts}/uvicorn", "fastapi_server:app", *listen, "--no-access-log"], FRONT),
        "mosec": ([f"{scripts}/python", "mosec_server.py", "--address", "127.0.0.1", "--port", str(port)], ALL),
        "bentoml": ([f"{scripts}/bentoml", "serve", "bentoml_server:Trees", *listen], ALL),
    }[name]
    environment = {
        "MODEL": str(model),
        "BENTOML_HOME": str(log.parent / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PATH": f"{scripts}:/usr/local/bin:/usr/bin:/bin",
    }
    here = ROOT / "bench" / "rivals"
    with process(command, cores=cores, environment=environment, log=log, cwd=here) as child:
        wait_for_port(port, child, log)
        yield port
