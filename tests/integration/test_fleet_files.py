"""A fleet as files on a real platform: the example is applied, drift is told, hands are not overwritten, and an apply
that was cut off is run again."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import headrace
from headrace.client import calls
from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.errors import Conflict
from headrace.core.resources import TenantUpdate
from tests import models
from tests.integration.test_cli import run_with

EXAMPLE = Path(__file__).parents[2] / "examples" / "fleet"
Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.xdist_group("fleet_files")  # each goes on from where the one before left the platform


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform of its own: a fleet file is about all of it."""
    started = Platform(str(tmp_path_factory.mktemp("fleet")))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def client(served: Platform) -> Client:
    return served.client


@pytest.fixture(scope="module")
def run(served: Platform, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = str(tmp_path_factory.mktemp("config"))
    return run_with({"HEADRACE_DATA": str(served.folder), "XDG_CONFIG_HOME": config})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example, to be edited."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "fleet"))


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "fleet.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def names(steps: list[Any]) -> list[str]:
    return [f"{step.action} {step.name}" for step in steps]


@pytest.fixture
def applied(client: Client) -> None:
    """The platform is as the example says."""
    result = client.fleet.apply(EXAMPLE, prune=True)
    assert result.refused is None and result.left == result.waiting == []
    assert client.fleet.plan(EXAMPLE, prune=True).steps == []


def test_the_example_is_planned_applied_and_then_there_is_nothing_to_do(run: Run, client: Client) -> None:
    planned = run("plan", "-f", str(EXAMPLE), "--check", code=4)
    assert "+ create version growth/churn@2" in planned.stdout
    assert "after deployment growth/churn@2: requests go to what is ready" in planned.stdout
    assert "16 to create, 1 to change" in planned.stdout
    assert "Aborted" in run("apply", "-f", str(EXAMPLE), stdin="n\n", code=1).stderr
    assert client.models.list() == []
    done = run("apply", "-f", str(EXAMPLE), "--yes", "--why", "the first")
    assert "done: create traffic growth/churn" in done.stdout and "17 done" in done.stdout
    assert run("plan", "-f", str(EXAMPLE), "--check").stdout == "no changes\n"
    assert "0 done" in run("apply", "-f", str(EXAMPLE)).stdout
    assert client.traffic.show("growth/churn").weights == {"1": 90.0, "2": 10.0}
    assert client.traffic.show("growth/churn").overrides == {"risk": 2}
    assert client.deployments.show("growth/churn@2").memory_mb == 1024
    assert client.models.show("growth/churn").aliases == {"champion": 1, "challenger": 2}
    assert client.models.show_version("risk/fraud@1").state == "approved"
    assert client.models.show_version("growth/churn@2").lineage.parent == "churn@1"
    key = client.keys.create("viewer", "risk").result.text
    with Client(client.access.url, key, client.access.control_url) as risk:
        assert risk.predict("growth/churn", np.zeros((1, 4), np.float32)).version == "2"  # as its override says
        assert risk.keys.show().tenant == "risk"
    reasons = {change.reason for change in client.changes(limit=1000).items if change.actor != "platform"}
    assert "headrace apply: the first" in reasons


@pytest.mark.usefixtures("applied")
def test_what_a_hand_has_changed_is_told_as_drift_and_put_back(run: Run, client: Client) -> None:
    client.traffic.set("growth/churn", {1: 60, 2: 40}, reason="looks good")
    client.traffic.pin("growth/churn", "growth", 1)
    client.call(calls.update_tenant("growth", TenantUpdate(burst=7)))
    found = json.loads(run("plan", "-f", str(EXAMPLE), "--json").stdout)
    drifted = {step["key"]["kind"]: step for step in found["steps"]}
    assert drifted.keys() == {"tenant", "traffic"}
    assert drifted["tenant"]["changes"] == [{"field": "quota.burst", "old": 7.0, "new": 100.0}]
    assert drifted["traffic"]["changes"][0]["old"] == {"1": 60.0, "2": 40.0}
    assert drifted["traffic"]["drift"]["reason"] == "looks good"
    assert [note["name"] for note in found["notes"]] == ["override growth/churn of growth"]
    told = run("apply", "-f", str(EXAMPLE), "--prune", "--yes").stdout
    assert "drift: traffic.set by hr_" in told and "'looks good'" in told
    assert "- remove override growth/churn of growth" in told and "3 done" in told
    assert client.traffic.show("growth/churn").overrides == {"risk": 2}
    assert client.tenants.show("growth").quota.burst == 100
    # Now the file moves on: that is no drift.
    client.fleet.apply(EXAMPLE)
    assert not [step for step in client.fleet.plan(EXAMPLE).steps if step.drift]


@pytest.mark.usefixtures("applied")
def test_a_change_of_the_file_is_no_drift_and_swaps_versions(client: Client, folder: Path) -> None:
    edit(folder, "weights = { 1 = 90, 2 = 10 }", "weights = { 2 = 100 }")
    edit(folder, '[models."growth/churn".deployments.1]\nreplicas = 1\n', "")
    plan = client.fleet.plan(folder, prune=True)
    assert names(plan.steps) == ["change traffic growth/churn"]
    assert plan.steps[0].drift is None
    assert client.fleet.apply(plan, reason="2 won").refused is None
    again = client.fleet.plan(folder, prune=True)
    assert again.steps == []
    assert [note.name for note in again.notes] == ["deployment growth/churn@1"]  # a rollback's, or an alias's
    previous = client.traffic.show("growth/churn").previous
    assert previous in ({"1": 90.0, "2": 10.0}, {"1": 100.0})  # the latter where 1 was ready first, for a moment
    assert client.traffic.rollback("growth/churn").result.weights == previous
    (step,) = client.fleet.plan(folder, prune=True).steps
    assert step.drift is not None and step.drift.action == "traffic.rollback"


@pytest.mark.usefixtures("applied")
def test_what_has_changed_since_the_plan_is_a_conflict_and_the_rest_is_left(client: Client, folder: Path) -> None:
    edit(folder, "weights = { 1 = 90, 2 = 10 }", "weights = { 1 = 50, 2 = 50 }")
    edit(folder, "champion = 1", "champion = 2")
    plan = client.fleet.plan(folder)
    client.traffic.set("growth/churn", {1: 80, 2: 20})
    result = client.fleet.apply(plan)
    assert result.refused is not None and result.refused.code == "conflict"
    assert "has changed since the plan" in result.refused.message
    assert names(result.left) == ["change alias growth/churn@champion"]
    assert client.traffic.show("growth/churn").weights == {"1": 80.0, "2": 20.0}
    assert client.fleet.apply(folder).refused is None
    assert client.models.show("growth/churn").aliases["champion"] == 2


@pytest.mark.usefixtures("applied")
def test_cut_off_at_any_step_it_goes_on_from_there(client: Client, folder: Path) -> None:
    class Killed(BaseException):
        """Ends an apply as a kill would: no line after it runs."""

    edit(folder, "timeout_s = 2", "timeout_s = 3")
    edit(folder, "memory_mb = 1024", "memory_mb = 2048")
    edit(folder, "weights = { 1 = 90, 2 = 10 }", "weights = { 1 = 89, 2 = 11 }")
    left = len(client.fleet.plan(folder).steps)
    assert left == 3
    while left:

        def kill(event: Any) -> None:
            if event.stage == "done":
                raise Killed

        with pytest.raises(Killed):
            client.fleet.apply(folder, watch=kill)
        left -= 1
        assert len(client.fleet.plan(folder).steps) == left
    assert client.traffic.show("growth/churn").weights == {"1": 89.0, "2": 11.0}


@pytest.mark.usefixtures("applied")
def test_it_stops_at_the_first_refusal_and_says_what_was_done(run: Run, client: Client, folder: Path) -> None:
    edit(folder, '[models."growth/churn"]\n', '[models."growth/churn"]\nbody_max_bytes = 1048576\n')
    edit(folder, "replicas = 1\nmemory_mb", "replicas = 9999\nmemory_mb")
    done = run("apply", "-f", str(folder), "--yes", code=1)
    assert "done: change model growth/churn" in done.stdout
    assert "error: deployment growth/churn@2: replicas: 9999, expected 0 to 256" in done.stderr
    assert "1 done, 1 not" in done.stdout


@pytest.mark.usefixtures("applied")
def test_faults_are_told_before_anything_is_done(run: Run, client: Client, folder: Path) -> None:
    before = client.changes(limit=1).items[0].id
    edit(folder, "metrics = { auc = 0.91 }", "metrics = { auc = 0.99 }")
    edit(folder, "timeout_s = 2", "timeout_s = 9")
    done = run("apply", "-f", str(folder), "--yes", code=1)
    assert "! version growth/churn@1: metrics is {'auc': 0.91}" in done.stdout
    with pytest.raises(Conflict, match="a version never changes"):
        client.fleet.apply(folder)
    assert client.changes(limit=1).items[0].id == before
    assert "did you mean timeout_s?" in run_fault(run, folder, "timeout_s = 9", "timeouts = 9")


def run_fault(run: Run, folder: Path, old: str, new: str) -> str:
    edit(folder, old, new)
    return run("plan", "-f", str(folder), code=1).stderr


@pytest.mark.usefixtures("applied")
def test_without_waiting_what_needs_readiness_is_left_for_the_next(client: Client, folder: Path) -> None:
    digest = client.models.show_version("growth/churn@1").digest
    edit(
        folder,
        '[models."growth/churn".deployments.1]',
        f"""[models."growth/churn".versions.3]
digest = "{digest}"
file_name = "churn-3.json"
[models."growth/churn".deployments.3]
[models."growth/churn".deployments.1]""",
    )
    edit(folder, "weights = { 1 = 90, 2 = 10 }", "weights = { 1 = 80, 2 = 10, 3 = 10 }")
    result = client.fleet.apply(folder, wait=False)
    assert result.refused is None
    assert names(result.done) == ["create version growth/churn@3", "create deployment growth/churn@3"]
    assert names(result.waiting) == ["change traffic growth/churn"]
    assert names(client.fleet.apply(folder).done) == ["change traffic growth/churn"]
    assert client.traffic.show("growth/churn").weights == {"1": 80.0, "2": 10.0, "3": 10.0}


@pytest.mark.usefixtures("applied")
def test_an_export_makes_the_same_platform_elsewhere(
    run: Run, client: Client, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path / "exported.toml"
    run("export", "-f", str(path))
    assert path.read_text() == run("export").stdout == client.fleet.export()
    assert "hr_" not in path.read_text()
    assert run("plan", "-f", str(path), "--check", "--prune").stdout == "no changes\n"
    assert "fraud" not in client.fleet.export("growth")
    other = Platform(str(tmp_path_factory.mktemp("other")))
    try:
        empty = other.client.fleet.plan(path)
        assert "is not stored on this platform" in empty.faults[0].message
        for file in (EXAMPLE / "models").glob("*-?.json"):
            other.client.push("scratch", file)
        assert other.client.fleet.apply(path).refused is None
        assert client.fleet.export("growth") == other.client.fleet.export("growth")
        assert client.fleet.export("risk") == other.client.fleet.export("risk")
    finally:
        other.stop()


def test_asyncio_and_a_plans_requests_do_not_grow_with_the_fleet(served: Platform, tmp_path: Path) -> None:
    sent: list[httpx.Request] = []

    async def keep(request: httpx.Request) -> None:
        sent.append(request)

    artifact = models.echo_onnx().named(tmp_path)
    text = "".join(
        f"[models.many-{n}]\ntags = {{ n = '{n}' }}\n[models.many-{n}.versions.1]\nartifact = '{artifact.name}'\n"
        for n in range(20)
    )
    (tmp_path / "fleet.toml").write_text(text)

    async def work() -> tuple[Any, Any]:
        access = served.client.access
        async with headrace.AsyncClient(access.url, access.api_key, access.control_url) as client:
            done = await client.fleet.apply(tmp_path / "fleet.toml")
            client._http["control"].event_hooks["request"].append(keep)
            return done, await client.fleet.plan([tmp_path / "fleet.toml"])

    done, plan = asyncio.run(work())
    assert len(done.done) == 40 and plan.steps == []
    assert len(sent) <= 6
