"""A model that loops, eats memory or segfaults, for ever or for one input only, beside neighbours under steady load."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.client import calls
from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.errors import DeadlineExceeded, HeadraceError, NotFound, Unprocessable
from headrace.core.specs import EngineOptions
from tests import models
from tests.polling import until

POISON = 666.0
HARM = {
    "segfault": "ctypes.string_at(0)",
    "abort": "os.abort()",
    "loop": "[None for _ in iter(int, 1)]",
    "sleeps with the interpreter": "ctypes.PyDLL(None).sleep(600)",
    "memory": "self.kept += [np.ones(1 << 20) for _ in iter(int, 1)]",
}


def harmful(harm: str, when: str) -> bytes:
    """A model, y = 2 x, that does harm where `when` holds for a row."""
    return f"""
import ctypes, os
import numpy as np
class Model:
    inputs = [("x", "FP32", (-1, 1))]
    outputs = [("y", "FP32", (-1, 1))]
    kept = []
    def predict(self, inputs):
        x = inputs["x"]
        if {when}: {HARM[harm]}
        return {{"y": x * 2}}
""".encode()


class Load:
    """Steady requests to a model from threads; what came of them."""

    def __init__(self, client: Client, model: str, threads: int = 3) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._client = client
        self._model = model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(k,)) for k in range(threads)]

    def _run(self, number: int) -> None:
        value = float(number)
        while not self._stop.is_set():
            value = (value + 3) % 300
            try:
                got = self._client.predict(self._model, [[value]], timeout_s=60.0).array.tolist()
                assert got == [[value * 2]], (value, got)
                self.answered += 1
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self._stop.wait(0.01)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        until(lambda: self.answered > 20 or bool(self.failures))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A platform with a healthy neighbour."""
    platform = Platform(str(tmp_path_factory.mktemp("isolation")), grpc=True)
    try:
        double = harmful("abort", "False")
        path = tmp_path_factory.mktemp("models") / "model.py"
        path.write_bytes(double)
        platform.client.push("neighbour", path)
        platform.client.deploy("neighbour@1")
        yield platform.client
    finally:
        platform.stop()


def push(client: Client, folder: Path, name: str, harm: str, when: str, **options: Any) -> None:
    path = folder / "model.py"
    path.write_bytes(harmful(harm, when))
    client.push(name, path, **options)


def deaths(client: Client, model: str) -> list[str]:
    """What the audit says of replicas that died, oldest first."""
    found = client.changes(model=model).items
    return [str((one.after or {})["detail"]) for one in reversed(found) if one.action == "replica.died"]


def whole(client: Client, reference: str) -> bool:
    found = client.deployments.show(reference)
    return found.state == "ready" and found.ready == found.replicas


@pytest.mark.timeout(240)
@pytest.mark.parametrize("harm", ["segfault", "loop", "sleeps with the interpreter"])
def test_a_poison_input_is_found_and_quarantined_and_nobody_else_fails(
    served: Client, tmp_path: Path, harm: str
) -> None:
    name = f"poisoned-{list(HARM).index(harm)}"
    push(served, tmp_path, name, harm, f"({POISON} in x)", run_limit_s=1.5)
    served.deploy(f"{name}@1", replicas=3)
    with Load(served, "neighbour") as neighbour, Load(served, name) as mates:
        with pytest.raises(Unprocessable, match="quarantined"):
            served.predict(name, [[POISON]], timeout_s=60.0)
        (found,) = served.quarantine.list(name).items if until_listed(served, name) else ()
        before = mates.answered
        with pytest.raises(Unprocessable, match=found.digest):  # at once: no replica sees it
            served.predict(name, [[POISON]])
        until(lambda: mates.answered > before + 20 and whole(served, f"{name}@1"), 60)
    assert neighbour.failures == [] and mates.failures == []
    assert len(deaths(served, name)) == 2
    said = {"segfault": "SIGSEGV", "loop": "watchdog", "sleeps with the interpreter": "watchdog"}[harm]
    assert all(said in detail for detail in deaths(served, name))
    assert (found.model, found.version) == (name, 1)


def until_listed(client: Client, name: str) -> bool:
    until(lambda: len(client.quarantine.list(name).items) == 1)
    return True
