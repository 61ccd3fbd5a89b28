"""What Ray is asked for, what its nodes are taken for, and what a control plane makes of the agent's and the replicas'
own words."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace.core.config import load
from headrace.core.devices import Device
from headrace.core.errors import InvalidInput
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, ReplicaSpec, ReplicaState, ReplicaStatus, ServedVersion
from headrace.deploy.ray.fleet import SILENT_S, STRAY_S, RayFleet
from headrace.deploy.ray.plan import Ask, Node, ask, devices
from headrace.deploy.ray.wire import namespace_of, read_secret

ID = "0123456789abcdef0123"
SPEC = ReplicaSpec("r", "unix:x", (ServedVersion(0, "d/m", 1, "onnx", "", "", Signature((), ()), EngineOptions()),), 2)
PLAIN = Node(ID, True, {"CPU": 8.0, "memory": float(4 << 30)})
GPUS = Node("f" * 20, True, {"CPU": 4.0, "GPU": 2.0, "memory": float(2 << 30)}, {"ray.io/accelerator-type": "L4"})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Ask(2)),
        ({"memory_mb": 512}, Ask(2, memory_bytes=512 << 20)),
        ({"accelerators": 0.25, "tier": "t4"}, Ask(2, 0.25, labels={"headrace.tier": "t4"})),
        ({"accelerators": 2.0, "spot": False}, Ask(2, 2.0, labels={"headrace.spot": "!true"})),
        ({"device": f"{ID[:12]}/cpu", "tier": "cpu"}, Ask(0.0, node=ID)),
        ({"device": "gone/cpu"}, None),
    ],
)
def test_what_is_asked_of_ray(change: dict[str, object], expected: Ask | None) -> None:
    asked = ask(msgspec.structs.replace(SPEC, **change), [PLAIN, GPUS])
    assert asked == expected
    assert asked is None or str(asked).startswith(f"{expected.cpus:g} CPU" if expected else "")


def test_a_node_that_is_dead_takes_nothing_and_has_no_device() -> None:
    dead = Node(ID, False, PLAIN.resources)
    assert ask(msgspec.structs.replace(SPEC, device=f"{ID[:12]}/cpu"), [dead]) is None
    assert devices([dead]) == []


def test_devices_are_what_the_nodes_declare() -> None:
    labelled = Node("a" * 20, True, {"GPU": 1.0}, {"headrace.tier": "big", "headrace.gpu-memory-mb": "99"})
    spot = Node("b" * 20, True, {"CPU": 1.0}, {"ray.io/market-type": "spot", "headrace.gpu-memory-mb": "much"})
    assert devices([PLAIN, GPUS, labelled, spot]) == [
        Device(f"{ID[:12]}/cpu", ID[:12], "cpu", 4096, 8.0),
        Device("f" * 12 + "/cpu", "f" * 12, "cpu", 2048, 4.0),
        Device("f" * 12 + "/gpu0", "f" * 12, "l4", 24576, 1.0),
        Device("f" * 12 + "/gpu1", "f" * 12, "l4", 24576, 1.0),
        Device("a" * 12 + "/gpu0", "a" * 12, "big", 99, 1.0),
        Device("b" * 12 + "/cpu", "b" * 12, "cpu", 0, 1.0, True),
    ]


def test_the_secret_is_made_once_and_names_the_platform(tmp_path: Path) -> None:
    first = read_secret(tmp_path)
    assert len(bytes.fromhex(first)) == 32 and read_secret(tmp_path) == first
    assert (tmp_path / "cluster.key").stat().st_mode & 0o777 == 0o600
    assert first not in namespace_of(first) and namespace_of(first) != namespace_of("00" * 32)


class World:
    """An agent's words and replicas' connections as a test has them: the two seams of `RayFleet`."""

    def __init__(self) -> None:
        self.known: list[ReplicaStatus] = []
        self.connected: frozenset[str] = frozenset()
        self.told: list[str] = []
        self.now = 100.0
        self.holding = ""
        node, agent = type("Node", (), {})(), type("Agent", (), {})()
        node.statuses = tuple
        agent.statuses, agent.holding, agent.connected = lambda: tuple(self.known), "", True
        self.agent = agent
        self.fleet = RayFleet(node, agent, self, lambda: self.now)

    def stop_replica(self, replica: str) -> None:
        self.told.append(replica)

    def seen(self) -> tuple[ReplicaState, bool, bool]:
        (one,) = self.fleet.statuses()
        return one.state, one.stuck, one.lost


def status(state: ReplicaState, lost: bool = False) -> ReplicaStatus:
    return ReplicaStatus(SPEC, state, 1, "why", lost=lost)


def test_one_that_is_not_heard_of_counts_no_more_until_it_is_heard_again() -> None:
    world = World()
    world.known = [status("ready")]
    assert world.seen() == ("ready", False, False), "just found"
    world.now += SILENT_S + 0.1
    assert world.seen() == ("ready", True, False)
    world.connected = frozenset({"r"})
    assert world.seen() == ("ready", False, False)
    world.now += 1000
    assert world.seen() == ("ready", False, False)
    world.connected = frozenset()
    world.now += SILENT_S - 0.1
    assert world.seen() == ("ready", False, False)
    world.now += 0.2
    assert world.seen() == ("ready", True, False)


def test_one_whose_actor_is_lost_serves_on_while_it_is_connected() -> None:
    world = World()
    world.known = [status("crashed", lost=True)]
    world.connected = frozenset({"r"})
    assert world.seen() == ("ready", False, True)
    world.connected = frozenset()
    assert world.seen() == ("crashed", False, True)
    world.known = [status("stopped", lost=True)]
    assert world.seen() == ("stopped", False, True)
    world.connected = frozenset({"r"})
    assert world.seen() == ("draining", False, True)


def test_one_that_nobody_knows_is_sent_away_but_not_while_ray_is_silent() -> None:
    world = World()
    world.connected = frozenset({"stray"})
    world.fleet.statuses()
    world.agent.holding = "why"
    world.now += STRAY_S + 1
    world.fleet.statuses()
    assert world.told == []
    world.agent.holding = ""
    world.fleet.statuses()
    world.now += STRAY_S + 1
    world.fleet.statuses()
    assert world.told == ["stray"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"fleet": "rya"}, "fleet"),
        ({"fleet": "ray", "ray_address": "ray://head:10001"}, "ray_address"),
        ({"fleet": "ray", "ray_address": "head"}, "ray_address"),
        ({"ray_address": "head:6379"}, "ray_address"),
        ({"fleet": "ray", "unlinked_s": 0.0}, "unlinked_s"),
    ],
)
def test_settings_that_make_no_fleet_are_refused_by_name(given: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}: ") as refused:
        load(None, {}, given)
    assert refused.value.field == field
