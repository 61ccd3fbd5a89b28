"""The node agent as a process: what it leaves behind when it is stopped, killed, or started where it cannot run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from headrace.deploy.node import NodeInfo

UP = """
import sys
from headrace.core.config import Settings
from headrace.deploy.node import run_node
data, *ports = sys.argv[1:]
http, control, grpc = map(int, ports)
sys.exit(run_node(Settings(data=data, http_port=http, control_port=control, grpc_port=grpc, drain_s=5)))
"""


def until(true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Up:
    """A node agent in a folder."""

    def __init__(self, folder: Path, http_port: int = 0, control_port: int = 0, grpc_port: int = -1) -> None:
        self.folder = folder
        self.output = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.log")
        command = [sys.executable, "-c", UP, str(folder), *map(str, (http_port, control_port, grpc_port))]
        with self.output.open("w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self) -> Up:
        until(lambda: "headrace is up" in self.said or self.process.poll() is not None, "up")
        assert self.process.poll() is None, self.said
        return self

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def info(self) -> NodeInfo:
        return msgspec.json.decode((self.folder / "node.json").read_bytes(), type=NodeInfo)

    @property
    def pids(self) -> list[int]:
        return [self.info.control_pid, *self.info.router_pids]

    def live(self) -> int:
        return httpx.get(f"{self.info.http_url}/v2/health/live").status_code

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*ports: int) -> Up:
        started.append(Up(tmp_path / "data", *ports))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_everything_and_says_so_with_zero(up: Callable[..., Up], number: signal.Signals) -> None:
    node = up().wait()
    pids = node.pids
    assert node.live() == 200
    assert "credentials.toml" in node.said and node.info.control_url in node.said
    os.kill(node.process.pid, number)
    assert node.process.wait(20) == 0
    assert not [pid for pid in pids if runs(pid)]
    assert not (node.folder / "node.json").exists()


def test_killed_it_takes_its_children_along_and_comes_back_on_the_same_ports(up: Callable[..., Up]) -> None:
    node = up().wait()
    info, pids = node.info, node.pids
    node.end()
    ports = [int(url.rpartition(":")[2]) for url in (info.http_url, info.control_url)]
    again = up(*ports).wait()
    assert (again.info.http_url, again.info.control_url) == (info.http_url, info.control_url)
    assert again.live() == 200
    until(lambda: not any(map(runs, pids)), "the killed node's processes to leave")


def test_killed_services_come_back_where_they_were(up: Callable[..., Up]) -> None:
    node = up().wait()
    before = node.info
    for pid in node.pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: node.info.control_pid != before.control_pid, "another control plane")
    until(lambda: node.info.router_pids != before.router_pids, "another router")

    def answers() -> bool:
        try:
            return node.live() == 200 and httpx.get(f"{before.control_url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    until(answers, "answers on the same ports")


def test_a_second_one_on_the_folder_or_the_port_is_refused_and_told_why(up: Callable[..., Up], tmp_path: Path) -> None:
    node = up().wait()
    second = up()
    assert second.process.wait(20) == 1
    assert f"in use by another headrace (process {node.process.pid})" in second.said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        for ports, setting in (((number,), "http_port"), ((0, number), "control_port"), ((0, 0, number), "grpc_port")):
            third = Up(tmp_path / "other", *ports)
            try:
                assert third.process.wait(20) == 1
                assert f"{setting}: port {number}" in third.said
            finally:
                third.end()
    assert node.live() == 200


def test_an_embedded_platform_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    source = f"""
import sys
from headrace.client.serve import Platform
platform = Platform({str(tmp_path / "data")!r})
print("up", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
        info = msgspec.json.decode((tmp_path / "data" / "node.json").read_bytes(), type=NodeInfo)
        pids = [info.pid, info.control_pid, *info.router_pids]
        assert all(map(runs, pids))
        parent.kill()
    until(lambda: not any(map(runs, pids)), "everything to end")
