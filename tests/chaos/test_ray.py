"""The fleet on Ray, on a real cluster of several nodes: what is placed where, and what is lost with a node, with Ray's
head, with our own processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core import addresses, frames
from headrace.core.handshake import replica_key
from headrace.deploy.node import NodeInfo
from headrace.deploy.wire import NodeState
from tests import models
from tests.integration.wire import Wire, answering_throughout
from tests.polling import until
from tests.ray_cluster import MARK, Cluster, free_port

pytest.importorskip("ray", reason="Ray is not installed: pip install 'headrace[ray]'")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(240)]
PATH = "/v2/models/echo/infer"


class Fleet:
    """A platform on a cluster: a head, which takes no replica, and two nodes that do, one of them spot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = Cluster(folder)
        self.cluster.start(0, cpus=0)
        self.cluster.start(1)
        self.cluster.start(2, gpus=2, labels="headrace.tier=t4,headrace.spot=true,headrace.gpu-memory-mb=16384")
        os.environ.update(
            HEADRACE_FLEET="ray",
            HEADRACE_RAY_ADDRESS=self.cluster.address,
            HEADRACE_FLEET_PORT="0",
            HEADRACE_RAY_FOLDER=str(folder / "nodes"),
            HEADRACE_UNLINKED_S="20",
        )
        try:
            self.platform = Platform(str(folder / "up"))
        except BaseException:
            self.cluster.stop()
            raise
        finally:
            for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
                del os.environ[name]
        self.client: Client = self.platform.client

    def stop(self) -> None:
        self.platform.stop()
        self.cluster.stop()

    @property
    def info(self) -> NodeInfo:
        return msgspec.json.decode((self.platform.folder / "node.json").read_bytes(), type=NodeInfo)

    @property
    def state(self) -> NodeState:
        """As the agent has it on disk."""
        return msgspec.json.decode((self.platform.folder / "ray.json").read_bytes(), type=NodeState)

    def pids(self) -> dict[str, int]:
        """Of the replicas that are ready."""
        found = self.client.deployments.list().items
        return {one.id: one.pid for d in found for one in d.instances if one.state == "ready"}

    def scale(self, replicas: int) -> None:
        """Of the version that is deployed."""
        self.client.deployments.scale(f"echo@{self.client.deployments.list().items[0].version}", replicas)

    def hosts(self) -> list[str]:
        """Nodes of the replicas that are ready."""
        ready = self.pids()
        return sorted(s.address.split(":")[1] for s in self.state.replicas if s.spec.id in ready)

    def agent_pid(self) -> int:
        """The process that speaks with Ray."""
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                try:
                    told = (path / "cmdline").read_bytes().split(b"\0")
                    parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                if b"headrace.deploy.ray.agent" in told and parent == self.info.pid:
                    return int(path.name)
        raise AssertionError("no agent")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """With model ``echo``, four replicas of one version."""
    one = Fleet(tmp_path_factory.mktemp("ray"))
    try:
        one.client.push("echo", models.echo_onnx().content)
        one.client.deploy("echo@1", replicas=4, traffic=100, spot=True)
        yield one
    finally:
        one.stop()


def answers(fleet: Fleet) -> bool:
    return float(fleet.client.predict("echo", [[2.0]]).outputs["y"][0][0]) == 2.0


def test_replicas_are_actors_of_other_nodes_reached_over_tcp(fleet: Fleet) -> None:
    assert answers(fleet)
    assert set(fleet.hosts()) == {"127.0.0.3", "127.0.0.4"}
    status = fleet.client.status()
    assert (status.fleet.kind, status.fleet.holding) == ("ray", "")
    devices = {(d.tier, d.compute, d.memory_mb, d.spot) for d in status.fleet.devices if "gpu" in d.id}
    assert devices == {("t4", 1.0, 16384, True)}
    assert [d.compute for d in status.fleet.devices if d.id.endswith("/cpu")] == [4.0, 4.0]
    # What keeps strangers out is told to nobody who need not know it.
    secret = (fleet.platform.folder / "cluster.key").read_text().strip()
    assert (fleet.platform.folder / "cluster.key").stat().st_mode & 0o777 == 0o600
    kept = [*Path(f"/tmp/hr-{fleet.cluster.name}").rglob("*"), *(fleet.folder / "nodes").rglob("*")]
    kept += [fleet.platform.folder / "ray.json", *fleet.platform.folder.glob("logs/*")]
    keys = [secret, *(replica_key(bytes.fromhex(secret), name).hex() for name in fleet.pids())]
    for path in kept:
        if path.is_file():
            assert not any(key.encode() in path.read_bytes() for key in keys), path


def test_who_does_not_hold_the_secret_gets_no_word_out_of_a_replica(fleet: Fleet) -> None:
    class Nothing(frames.FrameProtocol):
        def on_data(self, data: bytes) -> int:
            raise AssertionError(data)

    async def test() -> None:
        for status in fleet.state.replicas:
            for key in (bytes(32), replica_key(b"guessed", status.spec.id)):
                with pytest.raises(ConnectionError):
                    await addresses.connect(status.address, Nothing(), "requests", key, status.spec.id)

    asyncio.run(test())
    assert answers(fleet)


@pytest.mark.parametrize("whose", ["the control plane", "the agent"])
def test_after_a_kill_of_our_own_processes_what_runs_is_found_again(fleet: Fleet, whose: str) -> None:
    before = fleet.pids()
    victim = fleet.info.control_pid if whose == "the control plane" else fleet.agent_pid()
    with answering_throughout(Wire(fleet.client), PATH):
        os.kill(victim, signal.SIGKILL)
        until(lambda: again(fleet) and not fleet.client.status().fleet.holding, 60)
    assert fleet.pids() == before and len(before) == 4
    fleet.client.deployments.scale("echo@1", 3)
    until(lambda: len(fleet.pids()) == 3)
    fleet.client.deployments.scale("echo@1", 4)
    until(lambda: len(fleet.pids()) == 4, 40)


def again(fleet: Fleet) -> bool:
    """The control plane answers."""
    try:
        return fleet.info.control_pid > 0 and bool(fleet.pids())
    except Exception:
        return False


def test_a_version_is_swapped_on_the_nodes_without_a_lost_request(fleet: Fleet) -> None:
    fleet.client.push("echo", models.echo_onnx().content, batch_max=8)
    with answering_throughout(Wire(fleet.client), PATH):
        fleet.client.deploy("echo@2", replicas=2, traffic=100, spot=True)
        fleet.client.deployments.remove("echo@1")
        until(lambda: len(fleet.pids()) == 2, 40)


def test_a_lost_nodes_replicas_are_started_elsewhere_and_no_request_is_lost(fleet: Fleet) -> None:
    fleet.scale(3)
    until(lambda: len(fleet.pids()) == 3, 40)
    with answering_throughout(Wire(fleet.client), PATH):
        fleet.cluster.kill(2)
        until(lambda: fleet.hosts() == ["127.0.0.3"] * 3, 90)
    deployment = fleet.client.deployments.list().items[0]
    assert (deployment.state, deployment.ready) == ("ready", 3)
    until(lambda: len(fleet.state.replicas) == 3, 60)  # the others are forgotten: each is counted once


def metric(fleet: Fleet) -> bool:
    text = httpx.get(f"{fleet.info.control_url}/metrics", headers=auth(fleet)).text
    return "headrace_fleet_holding 1.0" in text


def auth(fleet: Fleet) -> dict[str, str]:
    return {"authorization": f"Bearer {fleet.client.access.api_key}"}


def test_without_rays_head_serving_goes_on_and_scaling_holds_until_it_is_back(fleet: Fleet) -> None:
    before = fleet.pids()
    found: Callable[[], str] = lambda: fleet.client.status().fleet.holding  # noqa: E731
    with answering_throughout(Wire(fleet.client), PATH):
        fleet.cluster.kill(0)  # the head's machine: with the raylet to which our agent had connected
        until(lambda: bool(found()), 30)
        assert metric(fleet)
        fleet.scale(5)
        until(lambda: "holding" in fleet.client.deployments.list().items[0].detail)
        os.kill(fleet.info.control_pid, signal.SIGKILL)  # also one that starts now serves and holds
        until(lambda: again(fleet) and bool(found()), 60)
        assert fleet.pids() == before
    # A head that starts anew knows nobody, and takes no node that an earlier one had: all is started on new ones.
    for number in fleet.cluster.nodes - {0}:
        fleet.cluster.kill(number, "/raylet/raylet ")
    fleet.cluster.start(0, cpus=0)
    fleet.cluster.start(3, cpus=8)
    until(lambda: not found(), 60)
    until(lambda: fleet.hosts() == ["127.0.0.5"] * 5, 90)
    assert answers(fleet)
    assert not set(fleet.pids()) & set(before)
    until(lambda: not any(runs(pid) for pid in before.values()), 60)  # replaced, and gone


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_a_cluster_to_join_one_is_started_and_ends_with_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Cluster(tmp_path)  # for its way of telling whose a process is; nothing of it is started
    monkeypatch.setenv(MARK, f"{mine.name}-0")
    for name, value in {
        "FLEET": "ray",
        "FLEET_HOST": "127.0.0.7",
        "FLEET_PORT": "0",
        "RAY_PORT": str(free_port("127.0.0.7")),
        "RAY_FOLDER": str(tmp_path / "nodes"),
    }.items():
        monkeypatch.setenv(f"HEADRACE_{name}", value)
    platform = Platform(str(tmp_path / "up"))
    try:
        platform.client.push("echo", models.echo_onnx().content)
        platform.client.deploy("echo@1", traffic=100)
        assert float(platform.client.predict("echo", [[3.0]]).outputs["y"][0][0]) == 3.0
        assert mine.processes(0, "raylet")
    finally:
        platform.stop()
        try:
            until(lambda: not mine.processes(0), 20)
        finally:
            mine.kill(0)
