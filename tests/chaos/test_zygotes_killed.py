"""kill -9 of a zygote under load, and of a node whose replicas were forked."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from headrace.client.serve import Platform
from headrace.deploy.node import NodeInfo
from tests import models
from tests.chaos.test_node import runs, until


def children(pid: int) -> dict[int, str]:
    """A process's children and their command lines."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found[int(child)] = command
    return found


@pytest.mark.timeout(120)
def test_a_zygotes_death_loses_no_request_and_the_nodes_death_leaves_nothing(tmp_path: Path) -> None:
    platform = Platform(str(tmp_path))
    try:
        client = platform.client
        client.push("echo", models.echo_onnx().content)
        client.deploy("echo@1", traffic=100)
        node = msgspec.json.decode((tmp_path / "node.json").read_bytes(), type=NodeInfo).pid

        def instances() -> dict[int, str]:
            return {one.pid: one.origin for one in client.deployments.show("echo@1").instances if one.state == "ready"}

        def zygotes() -> set[int]:
            forkers = {pid for pid, command in children(node).items() if "headrace.server.zygote" in command}
            return forkers - set(instances())

        before = instances()
        assert set(before.values()) == {"zygote"}
        (victim,) = zygotes()
        answers: list[object] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    answers.append(client.predict("echo", [[2.0]]).array.tolist())
                except Exception as error:
                    answers.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        wait(lambda: len(answers) > 20, "answers before")
        os.kill(victim, signal.SIGKILL)
        wait(lambda: bool(zygotes() - {victim}), "another zygote")
        client.deployments.scale("echo@1", 2)
        wait(lambda: len(instances()) == 2, "a second replica")
        stop.set()
        asking.join(20)
        assert [one for one in answers if one != [[2.0]]] == []
        assert set(before) < set(instances())

        everything = [*children(node)]
        assert set(instances()) < set(everything)
        os.kill(node, signal.SIGKILL)
        wait(lambda: not any(map(runs, everything)), "what the killed node ran to leave")
    finally:
        platform.stop()


def wait(true: Callable[[], bool], what: str) -> None:
    until(true, what, 40.0)
