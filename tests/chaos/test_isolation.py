"""A model that loops, eats memory or segfaults, for ever or for one input only, beside neighbours under steady load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidInput,
    NotFound,
    Unavailable,
    Unprocessable,
    Unreachable,
)
from headrace.core.resources import ModelUpdate, Quarantined
from headrace.deploy.node import NodeInfo
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
import ctypes, os, time
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
def platform_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with a healthy neighbour."""
    platform = Platform(str(tmp_path_factory.mktemp("isolation")), grpc=True)
    try:
        push(platform.client, tmp_path_factory.mktemp("models"), "neighbour", "abort", "False")
        platform.client.deploy("neighbour@1")
        yield platform
    finally:
        platform.stop()


@pytest.fixture
def served(platform_of: Platform) -> Client:
    """The admin's client."""
    return platform_of.client


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


def condemned(client: Client, name: str) -> Quarantined:
    """The one input of the model that is in quarantine, as soon as the control plane knows it."""
    until(lambda: len(client.quarantine.list(name).items) > 0)
    (found,) = client.quarantine.list(name).items
    return found


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
        found = condemned(served, name)
        before = mates.answered
        with pytest.raises(Unprocessable, match=found.digest):  # at once: no replica sees it
            served.predict(name, [[POISON]])
        until(lambda: mates.answered > before + 20 and whole(served, f"{name}@1"), 60)
    assert neighbour.failures == [] and mates.failures == []
    said = {"segfault": "SIGSEGV", "loop": "watchdog", "sleeps with the interpreter": "watchdog"}[harm]
    until(lambda: [said in detail for detail in deaths(served, name)] == [True, True])
    assert (found.model, found.version) == (name, 1)


@pytest.mark.timeout(240)
def test_with_one_replica_it_is_found_too_and_the_quarantine_holds_until_it_is_lifted(
    served: Client, platform_of: Platform, tmp_path: Path
) -> None:
    flag = tmp_path / "harmful"
    flag.touch()
    push(served, tmp_path, "single", "abort", f"{POISON} in x and os.path.exists({str(flag)!r})")
    served.deploy("single@1")
    with Load(served, "neighbour") as neighbour, pytest.raises(Unprocessable, match="quarantined"):
        served.predict("single", [[POISON]], timeout_s=60.0)
    assert neighbour.failures == []
    found = condemned(served, "single")
    flag.unlink()
    until(lambda: whole(served, "single@1"), 60)
    for pid in msgspec.json.decode((platform_of.folder / "node.json").read_bytes(), type=NodeInfo).router_pids:
        os.kill(pid, signal.SIGKILL)

    def refused() -> bool:
        try:
            served.predict("single", [[POISON]], timeout_s=10.0)
        except Unprocessable:
            return True
        except (Unavailable, Unreachable):  # the router is not back yet
            return False
        raise AssertionError("a quarantined input was let through")

    until(refused, 60)
    asked = grpcclient.InferInput("x", [1, 1], "FP32")
    asked.set_data_from_numpy(np.full((1, 1), POISON, np.float32))
    with grpcclient.InferenceServerClient(platform_of.grpc_url) as caller:
        headers = {"authorization": f"Bearer {served.access.api_key}"}
        with pytest.raises(InferenceServerException, match="quarantined"):
            caller.infer("single", [asked], headers=headers)
    lifted = headrace(platform_of, "quarantine", "lift", "single@1", found.digest[:8], "--why", "it was the flag")
    assert "0 still in quarantine" in lifted
    assert served.predict("single", [[POISON]], timeout_s=60.0).array.tolist() == [[2 * POISON]]
    said = [(one.action, one.reason) for one in served.changes(model="single").items if "quarantine" in one.action]
    assert said[0] == ("quarantine.lift", "it was the flag") and said[1][0] == "quarantine.add"
    with pytest.raises(NotFound, match="no input"):
        served.quarantine.lift("single@1", found.digest)


@pytest.mark.timeout(240)
def test_batch_mates_of_a_poison_are_answered_and_not_condemned(served: Client, tmp_path: Path) -> None:
    push(served, tmp_path, "burst", "segfault", f"time.sleep(.02) or {POISON} in x")
    served.deploy("burst@1", replicas=2)
    answers: dict[float, object] = {}

    def ask(value: float) -> None:
        try:
            answers[value] = served.predict("burst", [[value]], timeout_s=60.0).array.tolist()
        except HeadraceError as error:
            answers[value] = error

    values = [*(float(n) for n in range(24)), POISON]
    threads = [threading.Thread(target=ask, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(answers.pop(POISON), Unprocessable)
    assert answers == {float(n): [[2.0 * n]] for n in range(24)}
    assert condemned(served, "burst").version == 1


@pytest.mark.timeout(240)
def test_what_may_not_be_sent_twice_is_not_and_is_found_when_its_client_sends_it_again(
    served: Client, tmp_path: Path
) -> None:
    push(served, tmp_path, "once", "abort", f"{POISON} in x")
    served.models.update("once", ModelUpdate(idempotent=False))
    served.deploy("once@1")
    with pytest.raises(Unavailable, match="lost"):
        served.predict("once", [[POISON]], timeout_s=30.0)
    assert served.quarantine.list("once").items == []
    until(lambda: len(deaths(served, "once")) == 1 and whole(served, "once@1"), 60)
    until(lambda: raised(served, "once", [[1.0]]) is None)
    with pytest.raises(Unprocessable, match="quarantined"):
        served.predict("once", [[POISON]], timeout_s=30.0)


def raised(client: Client, name: str, rows: object, timeout_s: float = 10.0) -> HeadraceError | None:
    try:
        client.predict(name, rows, timeout_s=timeout_s)
    except HeadraceError as error:
        return error
    return None


@pytest.mark.timeout(240)
def test_a_spare_answers_before_the_hung_replica_is_killed_and_what_it_hung_on_is_remembered(
    served: Client, tmp_path: Path
) -> None:
    push(served, tmp_path, "spared", "loop", f"{POISON} in x", run_limit_s=10.0)
    served.deploy("spared@1")
    (hung,) = served.deployments.show("spared@1").instances
    with pytest.raises(DeadlineExceeded):
        served.predict("spared", [[POISON]], timeout_s=1.0)
    until(lambda: raised(served, "spared", [[1.0]], 1.0) is None, 60)
    assert [one.state for one in served.deployments.show("spared@1").instances] == ["ready", "ready"]
    os.kill(hung.pid, signal.SIGKILL)
    until(lambda: len(deaths(served, "spared")) == 1)
    assert served.quarantine.list("spared").items == []
    with pytest.raises(Unprocessable, match="quarantined"):  # tried alone at once: it was given up in a dead replica
        served.predict("spared", [[POISON]], timeout_s=60.0)
    until(lambda: len(deaths(served, "spared")) == 2)  # the routers see it before the audit does


@pytest.mark.timeout(240)
def test_a_model_that_loops_on_everything_keeps_its_callers_no_longer_than_they_said(
    served: Client, tmp_path: Path
) -> None:
    push(served, tmp_path, "hangs", "loop", "(x != 1).any()", run_limit_s=1.0)
    served.deploy("hangs@1", replicas=2)
    with Load(served, "neighbour") as neighbour:
        started = time.monotonic()
        for value in (5.0, 6.0):
            error = raised(served, "hangs", [[value]])
            assert isinstance(error, DeadlineExceeded | Unprocessable | Unavailable), error
        assert time.monotonic() - started < 30.0
    assert neighbour.failures == []
    served.deployments.remove("hangs@1", force=True)


@pytest.mark.timeout(240)
def test_memory_over_the_limit_ends_that_replica_only_and_is_told(served: Client, tmp_path: Path) -> None:
    push(served, tmp_path, "greedy", "memory", f"{POISON} in x")
    served.deploy("greedy@1", replicas=2, memory_mb=400)
    with Load(served, "neighbour") as neighbour, Load(served, "greedy") as mates:
        with pytest.raises(Unprocessable, match="quarantined"):
            served.predict("greedy", [[POISON]], timeout_s=60.0)
        until(lambda: "memory limit of 400 MB" in served.deployments.show("greedy@1").detail)
        until(lambda: whole(served, "greedy@1"), 60)
    assert neighbour.failures == [] and mates.failures == []
    until(lambda: deaths(served, "greedy") == ["memory limit of 400 MB exceeded"] * 2)
    assert served.deployments.show("greedy@1").memory_mb == 400


@pytest.mark.timeout(120)
def test_a_model_too_large_for_its_limit_fails_its_deployment_and_says_so(served: Client, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_bytes(harmful("abort", "False") + b"    def load(self, folder): self.kept.append(np.ones(40 << 20))\n")
    served.push("large", path)
    with pytest.raises(Unprocessable, match="memory limit of 200 MB"):
        served.deploy("large@1", memory_mb=200)
    served.deployments.remove("large@1", force=True)


@pytest.mark.parametrize("given", [{"run_limit_s": 0.0}, {"run_limit_s": 1e9}])
def test_a_limit_out_of_range_names_its_field(served: Client, tmp_path: Path, given: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="run_limit_s"):
        push(served, tmp_path, "wrong", "abort", "False", **given)
    with pytest.raises(InvalidInput, match="memory_mb"):
        served.deploy("neighbour@1", memory_mb=1)


def headrace(platform: Platform, *typed: str) -> str:
    """A command, as typed."""
    access = platform.client.access
    environment = {
        **os.environ,
        "HEADRACE_URL": access.url,
        "HEADRACE_CONTROL_URL": access.control_url,
        "HEADRACE_API_KEY": access.api_key,
    }
    command = [sys.executable, "-m", "headrace.cli.main", *typed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
