"""A version's life on a real platform: push, deploy, split, roll back, crash, come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.client import calls
from headrace.client.client import Client
from headrace.client.serve import Platform, serve
from headrace.core.errors import Conflict, InvalidInput, NotFound, Unprocessable
from headrace.deploy.node import NodeInfo
from tests import models
from tests.polling import until


def served(client: Client, model: str, unit: str = "u") -> str:
    return str(client.predict(model, [[1.0]], unit=unit).version)


@pytest.fixture
def two(client: Client, request: pytest.FixtureRequest) -> str:
    """A model with two deployed versions, the first in traffic; y = x + version."""
    name = f"two-{abs(hash(request.node.name)) % 10**8}"
    for version in (1.0, 2.0):
        number = client.push(name, models.echo_onnx(version).content).result.version
        client.deploy(f"{name}@{number}", traffic=100 if version == 1.0 else None)
    return name


def test_split_rollback_and_rollback_of_the_rollback(client: Client, two: str) -> None:
    assert served(client, two) == "1"
    outcome = client.set_traffic(two, {2: 100}, reason="better")
    assert outcome.change.effective
    assert {served(client, two, str(k)) for k in range(20)} == {"2"}
    back = client.rollback(two)
    assert back.change.effective
    assert {served(client, two, str(k)) for k in range(20)} == {"1"}
    client.rollback(two)
    assert {served(client, two, str(k)) for k in range(20)} == {"2"}
    client.set_traffic(two, {1: 50, 2: 50})
    seen = {unit: served(client, two, unit) for unit in map(str, range(60))}
    assert set(seen.values()) == {"1", "2"}
    assert {unit: served(client, two, unit) for unit in seen} == seen
    rows = client.call(calls.traffic_history(two)).items
    assert [row.action for row in rows][:3] == ["traffic.set", "traffic.rollback", "traffic.rollback"]
    assert rows[-2].reason == "better"
    assert client.predict(two, [[1.0]], version=2).array.tolist() == [[3.0]]


def test_a_pin_comes_before_the_split(client: Client, two: str) -> None:
    client.call(calls.pin(two, "default", 2))
    assert {served(client, two, str(k)) for k in range(20)} == {"2"}
    client.call(calls.unpin(two, "default"))
    assert {served(client, two, str(k)) for k in range(20)} == {"1"}


def test_what_cannot_be_is_refused_with_the_reason(client: Client, two: str) -> None:
    with pytest.raises(InvalidInput, match="add up to 90"):
        client.set_traffic(two, {1: 90})
    with pytest.raises(NotFound, match="no version 7"):
        client.set_traffic(two, {7: 100})
    with pytest.raises(Conflict, match="traffic"):
        client.undeploy(f"{two}@1")
    with pytest.raises(NotFound, match="does not exist"):
        client.rollback("nothing")
    version = client.push(two, models.echo_onnx(9.0).content).result.version
    with pytest.raises(Conflict, match="not deployed"):
        client.set_traffic(two, {version: 100})


def test_pushing_the_same_again_changes_nothing(client: Client) -> None:
    first = client.push("same", models.echo_onnx(5.0).content)
    again = client.push("same", models.echo_onnx(5.0).content)
    assert (first.result.version, again.result.version) == (1, 1)


@pytest.mark.parametrize("broken", [b"", b"no model", models.echo_onnx().content[:60]])
def test_a_file_that_does_not_load_is_never_registered(client: Client, broken: bytes) -> None:
    with pytest.raises(Unprocessable):
        client.push("broken", broken)
    with pytest.raises(NotFound):
        client.call(calls.show_model("broken"))


def test_models_that_crash_are_refused_and_the_rest_serves(client: Client, echo: str, tmp_path: Path) -> None:
    for artifact in (models.exits_at_load(), models.raises_at_load(), models.exits_at_warm_up()):
        with pytest.raises(Unprocessable):
            client.push("crashes", artifact.named(tmp_path))
    assert client.predict(echo, [[4.0]]).array.tolist() == [[4.0]]


def test_a_killed_replica_loses_nobodys_request_where_there_are_two(client: Client, two: str) -> None:
    client.deploy(f"{two}@1", replicas=2)
    found = client.call(calls.show_deployment(f"{two}@1"))
    victim = found.instances[0].pid
    for k in range(200):
        if k == 50:
            os.kill(victim, signal.SIGKILL)
        assert served(client, two, str(k)) == "1"

    def replaced() -> bool:
        now = client.call(calls.show_deployment(f"{two}@1"))
        return now.ready == 2 and victim not in [i.pid for i in now.instances]

    until(replaced)


def test_the_data_plane_goes_on_without_the_control_plane(client: Client, platform: Platform, two: str) -> None:
    info = msgspec.json.decode((platform.folder / "node.json").read_bytes(), type=NodeInfo)
    client.set_traffic(two, {2: 100})
    os.kill(info.control_pid, signal.SIGKILL)
    for k in range(100):
        assert served(client, two, str(k)) == "2"
    until(lambda: (platform.folder / "node.json").read_bytes().find(b'"control_pid":%d,' % info.control_pid) < 0)

    def back() -> bool:
        try:
            return client.rollback(two).change.effective
        except Exception:
            return False

    before = client.call(calls.show_traffic(two)) if _answers(client) else None
    assert before is None or before.weights == {"2": 100.0}
    until(back)


def _answers(client: Client) -> bool:
    try:
        client.status()
    except Exception:
        return False
    return True


def test_a_killed_node_comes_back_with_everything_that_was_acknowledged(tmp_path: Path) -> None:
    first = Platform(str(tmp_path))
    try:
        first.client.push("kept", models.echo_onnx(3.0).content)
        first.client.deploy("kept@1", traffic=100)
        os.kill(first._process.pid, signal.SIGKILL)
    finally:
        first.stop()
    again = Platform(str(tmp_path))
    try:
        until(lambda: again.client.call(calls.show_deployment("kept@1")).ready == 1)
        assert again.client.predict("kept", [[1.0]]).array.tolist() == [[4.0]]
        taken = subprocess.run(
            [sys.executable, "-m", "headrace.cli.main", "up", "--data", str(tmp_path)], capture_output=True, text=True
        )
        assert taken.returncode == 1
        assert "in use by another headrace" in taken.stderr
    finally:
        again.stop()


def test_an_object_is_served_in_one_line() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = models.breast_cancer()
    estimator = LogisticRegression(max_iter=5000).fit(x[:, :4], y)
    with serve(estimator, "cancer") as endpoint:
        got = endpoint.predict(x[:5, :4]).outputs["probabilities"]
    np.testing.assert_allclose(got, estimator.predict_proba(x[:5, :4].astype(np.float64)))


def test_metrics_tell_of_requests(client: Client, echo: str) -> None:
    import httpx

    client.predict(echo, [[1.0]])

    def told() -> bool:
        text = httpx.get(f"{client.access.control_url}/metrics").text
        return 'headrace_requests_total{code="200",model="default/echo",tenant="default",version="1"}' in text

    until(told)
