"""The command line against a real platform: what a person types, what they read, and the exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas
import pytest
import typer
from typer.testing import CliRunner

import headrace
from headrace.cli import output
from headrace.cli.main import app
from headrace.client.serve import Platform
from headrace.core import errors
from tests import models

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_with(environment: dict[str, str]) -> Run:
    names = ("PATH", "HOME", "PYTHONPATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}

    def run(*arguments: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "headrace.cli.main", *arguments]
        environ = {**kept, "COLUMNS": "200", **environment}
        done = subprocess.run(command, env=environ, input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def run(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = str(tmp_path_factory.mktemp("config"))
    return run_with({"HEADRACE_DATA": str(platform.folder), "XDG_CONFIG_HOME": config})


def test_a_model_from_file_to_rollback(run: Run, tmp_path: Path) -> None:
    first, second = models.echo_onnx(1.0).named(tmp_path), tmp_path / "second.onnx"
    pushed = run("models", "push", "cli", str(first), "--metric", "auc=0.9", "--tag", "team=risk")
    assert "cli@1  onnx" in pushed.stdout
    assert "takes x FP32 [-1, 1]" in pushed.stdout
    assert "next: headrace deploy cli@1" in pushed.stdout
    assert "cli@1  onnx" in run("models", "push", "cli", str(first), "--metric", "auc=0.9").stdout
    deployed = run("deploy", "cli@1", "--why", "first")
    assert "cli@1 ready: 1 of 1 replicas, 100 % of the traffic" in deployed.stdout
    assert "undo: headrace undeploy cli@1" in deployed.stdout
    assert run("predict", "cli", "--row", "2").stdout.split()[-1] == "[3.0]"

    second.write_bytes(models.echo_onnx(10.0).content)
    outcome = json.loads(run("models", "push", "cli", str(second), "--json").stdout)
    assert (outcome["result"]["version"], outcome["result"]["model"]) == (2, "cli")
    outcome = json.loads(run("deploy", "cli@2", "--json").stdout)
    assert (outcome["result"]["state"], outcome["result"]["traffic_percent"]) == ("ready", 0.0)
    shifted = run("traffic", "set", "cli", "1=0", "2=100", "--why", "better")
    assert "cli: 2: 100 %" in shifted.stdout
    assert "in effect on 2 routers after" in shifted.stdout
    assert "undo: headrace rollback cli" in shifted.stdout
    (tmp_path / "rows.csv").write_text("x\n2\n4\n")
    reply = json.loads(run("predict", "cli", "--input", str(tmp_path / "rows.csv"), "--json").stdout)
    assert reply["version"] == "2"
    assert next(iter(reply["outputs"].values())) == [[12.0], [14.0]]
    assert "cli: 1: 100 %" in run("rollback", "cli", "--why", "worse").stdout
    assert run("predict", "cli", "--input", "-", stdin="[[2]]").stdout.split()[-1] == "[3.0]"

    policy = json.loads(run("traffic", "show", "cli", "--json").stdout)
    assert (policy["weights"], policy["previous"]) == ({"1": 100.0}, {"2": 100.0})
    history = run("traffic", "history", "cli").stdout
    assert "traffic.rollback" in history and "better" in history
    assert run("changes", "cli", "--since", "1h", "--limit", "3").stdout.count("\n") == 4
    assert "auc=0.9" in run("models", "show", "cli").stdout
    assert "cli" in run("models", "list", "--search", "cl").stdout
    assert "goes to 2 replicas" in run("scale", "cli@1", "2").stdout
    assert "default/cli@2" in run("status").stdout
    assert "drains and stops" in run("undeploy", "cli@2", "--yes").stdout


def test_tenants_keys_pins_and_grants(run: Run, platform: Platform, echo: str) -> None:
    assert "next: headrace keys create --tenant team" in run("tenants", "create", "team", "--rate", "50").stdout
    assert (
        "suspended"
        in json.loads(run("tenants", "update", "team", "--state", "suspended", "--json").stdout)["result"]["state"]
    )
    run("tenants", "update", "team", "--state", "active")
    assert "50" in run("tenants", "show", "team").stdout and "team" in run("tenants", "list").stdout
    made = json.loads(run("keys", "create", "--tenant", "team", "--role", "viewer", "--json").stdout)["result"]
    run("models", "grant", echo, "team")
    theirs = run_with(
        {
            "HEADRACE_URL": platform.client.access.url,
            "HEADRACE_CONTROL_URL": platform.client.access.control_url,
            "HEADRACE_API_KEY": made["text"],
        }
    )
    assert "@1" in theirs("predict", echo, "--tenant", "default", "--row", "1").stdout
    assert "error: " in theirs("keys", "list", code=1).stderr
    run("traffic", "pin", echo, "team", "1")
    assert "team is pinned to 1" in run("traffic", "show", echo).stdout
    run("traffic", "unpin", echo, "team")
    run("models", "revoke", echo, "team")
    run("keys", "revoke", made["key"]["id"], code=2)
    run("keys", "revoke", made["key"]["id"], "--yes")
    assert "revoked" in run("keys", "list", "--tenant", "team").stdout
    theirs("predict", echo, "--row", "1", code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "says", "hint"),
    [
        (("deploy", "absent@1"), 1, "absent", ""),
        (("deploy", "absent@x"), 1, "whole number", "absent@1"),
        (("scale", "absent", "1"), 1, "names no version", "absent@1"),
        (("models", "push", "m", "nowhere.onnx"), 1, "nowhere.onnx does not exist", ""),
        (("predict", "absent", "--row", "1"), 1, "absent", ""),
        (("predict", "ehco", "--row", "1"), 1, "'ehco' does not exist", "did you mean echo?"),
        (("predict", "echo@9", "--row", "1"), 1, "no deployed version '9'", "headrace deploy echo@9"),
        (("predict", "echo", "--row", "1", "--timeout-s", "0"), 1, "timeout_s: 0, expected", ""),
        (("predict", "echo", "--input", "nowhere.json"), 1, "nowhere.json: No such file", ""),
        (("predict", "echo", "--input", "/"), 1, "Is a directory", ""),
        (("predict", "echo"), 2, "--row or --input", ""),
        (("models", "show", "ehco"), 1, "'ehco' does not exist", "did you mean echo?"),
        (("tenants", "show", "defualt"), 1, "'defualt' does not exist", "did you mean default?"),
        (("keys", "create", "--role", "admn"), 2, "viewer, developer, operator, admin; did you mean admin?", ""),
        (("models", "push", "m", "f", "--engine", "onx"), 2, "did you mean onnx?", ""),
        (("up", "--http-port", "99999"), 1, "http_port: 99999, expected 0 to 65535", ""),
        (("config", "show", "--config", "/"), 1, "Is a directory", ""),
        (("predict", "echo", "--row", "a"), 1, "FP32", ""),
        (("traffic", "set", "echo", "1=half"), 2, "expected a number", ""),
        (("changes", "--since", "yesterday"), 2, "expected a time", ""),
        (("deploy",), 2, "Missing argument", ""),
        (("nonsense",), 2, "No such command", ""),
    ],
)
def test_an_error_is_one_clear_line(
    run: Run, echo: str, arguments: tuple[str, ...], code: int, says: str, hint: str
) -> None:
    done = run(*arguments, code=code)
    assert says in done.stderr
    if code == 1:
        lines = done.stderr.splitlines()
        assert lines[0].startswith("error: ") and all(line.startswith("hint: ") for line in lines[1:])
        assert hint in "".join(lines[1:])


def test_a_platform_that_is_not_there_is_exit_code_3() -> None:
    run = run_with(
        {
            "HEADRACE_URL": "http://127.0.0.1:9",
            "HEADRACE_CONTROL_URL": "http://127.0.0.1:9",
            "HEADRACE_API_KEY": "hr_a_b",
        }
    )
    assert "hint: is the platform running? headrace up" in run("status", code=3).stderr
    assert run("predict", "m", "--row", "1", code=3).stdout == ""


def test_commands_that_need_no_platform(tmp_path: Path) -> None:
    run = run_with({"HEADRACE_HTTP_PORT": "9000"})
    assert run("version").stdout == f"headrace {headrace.__version__}\n"
    (tmp_path / "h.toml").write_text("routers = 2\n")
    shown = json.loads(run("config", "show", "--config", str(tmp_path / "h.toml"), "--json").stdout)
    assert (shown["settings"]["http_port"], shown["origins"]["http_port"]) == (9000, "HEADRACE_HTTP_PORT")
    assert shown["settings"]["routers"] == 2
    assert run("up", "--log-level", "info", "--routers", "many", code=2).stdout == ""
    (tmp_path / "h.toml").write_text("rooters = 2\n")
    assert "did you mean routers?" in run("config", "show", "--config", str(tmp_path / "h.toml"), code=1).stderr


def test_a_variable_with_a_slip_in_it_is_refused_and_others_of_the_prefix_are_not(tmp_path: Path) -> None:
    slip = run_with({"HEADRACE_ROUTRS": "2"})
    assert "did you mean HEADRACE_ROUTERS?" in slip("config", "show", code=1).stderr
    kubernetes = run_with({"HEADRACE_SERVICE_HOST": "10.0.0.1", "HEADRACE_PORT": "tcp://10.0.0.1:8000"})
    assert kubernetes("config", "show").stdout


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group of commands, as it is typed."""
    yield words
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, word))


def test_every_command_explains_itself() -> None:
    runner = CliRunner()
    for words in commands(typer.main.get_command(app)):
        shown = runner.invoke(app, [*words, "--help"])
        assert shown.exit_code == 0, words
        assert shown.output.startswith("Usage: ") and "--help" in shown.output


@pytest.mark.parametrize(
    ("shell", "environment"),
    [
        ("bash", {"COMP_WORDS": "headrace predict ech", "COMP_CWORD": "2"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "headrace predict ech"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "headrace predict ech", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_shells_complete_names_of_models(
    platform: Platform, echo: str, shell: str, environment: dict[str, str]
) -> None:
    script = "import sys; from headrace.cli.main import app; sys.argv = ['headrace']; app(prog_name='headrace')"
    environment |= {**os.environ, "HEADRACE_DATA": str(platform.folder), "_HEADRACE_COMPLETE": f"complete_{shell}"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert echo in done.stdout, done.stderr


def test_ctrl_c_ends_a_watch_quietly(platform: Platform, echo: str) -> None:
    command = [sys.executable, "-m", "headrace.cli.main", "status", "--watch"]
    environment = {**os.environ, "HEADRACE_DATA": str(platform.folder)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as watch:
        assert watch.stdout is not None and watch.stdout.readline().startswith("headrace ")
        watch.send_signal(signal.SIGINT)
        _, wrong = watch.communicate(timeout=30)
    assert (watch.returncode, wrong) == (130, "")


def test_a_fault_of_ours_is_one_line_too() -> None:
    def broken() -> None:
        raise RuntimeError("a wheel came off")

    command = typer.Typer()
    command.command()(output.guarded(broken))
    shown = CliRunner().invoke(command, [])
    assert shown.exit_code == 1
    assert "error: a fault of headrace: RuntimeError: a wheel came off" in shown.stderr


# ------------------------------------------------------------------------------------------------ SDK
def test_the_async_client_does_what_the_sync_one_does(platform: Platform, echo: str, tmp_path: Path) -> None:
    access = platform.client.access

    async def work() -> None:
        async with headrace.AsyncClient(access.url, access.api_key, access.control_url) as client:
            sent: list[tuple[int, int]] = []
            file = models.echo_onnx(77.0).named(tmp_path)
            outcome = await client.models.push("side", file, progress=lambda a, b: sent.append((a, b)))
            assert sent[-1] == (file.stat().st_size, file.stat().st_size)
            created = await client.deployments.create(f"side@{outcome.result.version}")
            assert created.result.state == "ready"
            found = await asyncio.gather(*(client.predict("side", [[float(k)]]) for k in range(50)))
            assert [float(one.array[0, 0]) for one in found] == [k + 77.0 for k in range(50)]
            with pytest.raises(errors.NotFound):
                await client.predict("absent", [[1.0]])
            await client.deployments.remove("side@1", force=True)

    asyncio.run(work())


def test_objects_are_pushed_as_they_are(platform: Platform) -> None:
    client = platform.client
    rows, _ = models.breast_cancer()
    model = models.sklearn_classifier()
    client.models.push("object", model, outputs=["probabilities"], metrics={"auc": 0.9})
    client.deployments.create("object@1")
    reply = client.predict("object", rows[:5])
    np.testing.assert_allclose(reply.array, model.predict_proba(rows[:5].astype(np.float64)), rtol=1e-6)
    assert client.models.push("object", model, outputs=["probabilities"]).result.version == 1
    client.deployments.remove("object@1", force=True)


def test_serving_and_pushing_work_where_an_event_loop_runs_as_in_a_notebook(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = platform.client.access
    monkeypatch.setenv("HEADRACE_URL", access.url)
    monkeypatch.setenv("HEADRACE_CONTROL_URL", access.control_url)
    monkeypatch.setenv("HEADRACE_API_KEY", access.api_key)
    rows, _ = models.breast_cancer()

    async def cell() -> None:
        model = models.sklearn_classifier()
        with headrace.serve(model, "cell") as endpoint:
            frame = pandas.DataFrame(rows[:3])
            found = endpoint.predict(frame, unit="user-1", timeout_s=20).frame()
            assert list(found["label"]) == model.predict(rows[:3].astype(np.float64)).tolist()
        assert headrace.push(model, "cell").model == "cell"

    asyncio.run(cell())


def test_an_object_is_served_in_one_line() -> None:
    class Doubler:
        inputs: ClassVar[Any] = [("x", "FP32", (-1, 2))]
        outputs: ClassVar[Any] = [("y", "FP32", (-1, 2))]

        def predict(self, inputs: Any) -> Any:
            return inputs["x"] * 2

    with headrace.serve(Doubler(), name="doubler") as endpoint:
        assert endpoint.predict([[1, 2]]).array.tolist() == [[2.0, 4.0]]
        assert endpoint.url.endswith("/v2/models/doubler/infer")
        with pytest.raises(errors.InvalidInput):
            endpoint.predict([[1, 2, 3]])
    with pytest.raises(errors.Unreachable):
        headrace.Client(endpoint.client.access.url, "hr_a_b").predict("doubler", [[1, 2]])
