"""Deployments outlive what runs them: kill -9 of the whole node, and of all its parts at once."""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.client import calls
from headrace.client.client import Client
from tests import models
from tests.chaos.test_node import Up, until


def client_of(node: Up) -> Client:
    found = tomllib.loads((node.folder / "credentials.toml").read_text())
    return Client(found["url"], found["api_key"], found["control_url"])


def answers(client: Client, model: str = "echo", expected: float = 4.0) -> bool:
    try:
        return bool(client.predict(model, [[1.0]]).array.tolist() == [[expected]])
    except Exception:
        return False


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Up]:
    """A node that serves y = x + 3 from two replicas."""
    started = Up(tmp_path / "data").wait()
    with client_of(started) as client:
        client.push("echo", models.echo_onnx(3.0).content)
        client.deploy("echo@1", replicas=2, traffic=100)
        yield started
    started.end()


def pids_of_replicas(client: Client) -> list[int]:
    return [one.pid for one in client.call(calls.show_deployment("echo@1")).instances]


def whole(client: Client) -> bool:
    """All replicas are ready, and all routers serve by the newest snapshot."""
    try:
        status = client.status()
        deployment = client.call(calls.show_deployment("echo@1"))
    except Exception:
        return False
    followed = [one.connected and one.epoch == status.epoch for one in status.routers]
    return all(followed) and len(followed) > 0 and (deployment.state, deployment.ready) == ("ready", 2)


def test_a_killed_node_serves_again_on_its_ports_without_anybody_asking(node: Up) -> None:
    ports = [int(url.rpartition(":")[2]) for url in (node.info.http_url, node.info.control_url)]
    with client_of(node) as client:
        old = pids_of_replicas(client)
        node.end()
        again = Up(node.folder, *ports).wait()
        try:
            until(lambda: answers(client) and whole(client), "the same client, key and port to be served")
            assert not set(pids_of_replicas(client)) & set(old)
            assert client.call(calls.show_traffic("echo")).weights == {"1": 100.0}
        finally:
            again.end()


def test_all_parts_killed_at_once_come_back_to_what_was_wanted(node: Up) -> None:
    with client_of(node) as client:
        epoch = client.status().epoch
        victims = [*node.pids, *pids_of_replicas(client)]
        assert len(victims) == 4 and all(victims)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        until(lambda: answers(client) and whole(client), "everything to be back")
        assert client.status().epoch > epoch
        assert not {*node.pids, *pids_of_replicas(client)} & set(victims)


def test_everything_killed_in_one_moment_comes_back_with_all_that_was_acknowledged(node: Up) -> None:
    ports = [int(url.rpartition(":")[2]) for url in (node.info.http_url, node.info.control_url)]
    with client_of(node) as client:
        client.push("echo", models.echo_onnx(4.0).content)
        client.deploy("echo@2")
        client.call(calls.create_tenant("risk"))
        key = client.call(calls.create_key("viewer", "risk")).result
        client.call(calls.grant("echo", "risk"))
        client.call(calls.pin("echo", "risk", 2))
        last = client.set_traffic("echo", {1: 90, 2: 10}, reason="the last word").change
        victims = [node.process.pid, *node.pids]
        for reference in ("echo@1", "echo@2"):
            victims += [one.pid for one in client.call(calls.show_deployment(reference)).instances]
        assert len(victims) == 6 and all(victims)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        node.process.wait()
        again = Up(node.folder, *ports).wait()
        try:
            until(lambda: whole(client), "everything to be back")
            policy = client.call(calls.show_traffic("echo"))
            assert (policy.weights, policy.overrides) == ({"1": 90.0, "2": 10.0}, {"risk": 2})
            newest = client.call(calls.list_changes(limit=1)).items[0]
            assert (newest.id, newest.reason) == (last.id, "the last word")
            assert key.key.id in [one.id for one in client.call(calls.list_keys("risk")).items]
            with Client(again.info.http_url, key.text) as theirs:
                until(lambda: answers(theirs, "default/echo", 5.0), "the pinned tenant to be served by its version")
        finally:
            again.end()
