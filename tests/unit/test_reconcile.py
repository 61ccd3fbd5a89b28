from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, ReplicaSpec, ReplicaState, ReplicaStatus, ServedVersion
from headrace.deploy.reconcile import Memory, Want, reconcile, retire

TARGET = ("default/m", 1)


def status(name: str, state: ReplicaState, detail: str = "") -> ReplicaStatus:
    served = ServedVersion(0, *TARGET, "onnx", "", "", Signature((), ()), EngineOptions())
    return ReplicaStatus(ReplicaSpec(name, "unix:x", (served,)), state, 1, detail)


class World:
    """A fleet in virtual time: starts take a tick, stops another."""

    def __init__(self) -> None:
        self.replicas: dict[str, ReplicaStatus] = {}
        self.draining: set[str] = set()
        self.memory: dict[tuple[str, int], Memory] = {}
        self.now = 0.0
        self.count = 0

    def tick(self, want: int, revision: int = 1) -> str:
        self.now += 1.0
        wants = [Want(TARGET, want, revision)]
        plan = reconcile(wants, list(self.replicas.values()), self.draining, self.memory, self.now)
        for name in plan.forget:
            del self.replicas[name]
        for name in plan.stop:
            self.draining.add(name)
            self.replicas[name] = status(name, "stopped")
        for name, one in list(self.replicas.items()):
            if one.state == "starting":
                self.replicas[name] = status(name, "ready")
        for _ in plan.start:
            self.count += 1
            self.replicas[f"r{self.count}"] = status(f"r{self.count}", "starting")
        return plan.standings[TARGET].state

    def kill(self, name: str) -> None:
        self.replicas[name] = status(name, "crashed", "signal SIGKILL")


@given(st.lists(st.one_of(st.integers(0, 5), st.just("kill")), min_size=1, max_size=25))
def test_whatever_happens_the_fleet_comes_to_what_is_wanted(events: list[int | str]) -> None:
    world, want = World(), 1
    for _ in range(3):
        world.tick(want)
    for event in events:
        if isinstance(event, int):
            want = event
        elif ready := [n for n, s in world.replicas.items() if s.state == "ready"]:
            world.kill(ready[0])
        world.tick(want)
    for _ in range(80):  # longer than the longest pause
        world.tick(want)
    assert [s.state for s in world.replicas.values()] == ["ready"] * want


def test_a_version_that_cannot_be_served_fails_and_rests_until_it_is_changed() -> None:
    world = World()
    world.tick(1)
    (name,) = world.replicas
    world.replicas[name] = status(name, "failed", "the artifact is damaged")
    assert world.tick(1) == "failed"
    for _ in range(50):
        assert world.tick(1) == "failed"
    assert not world.replicas
    world.tick(1, revision=2)
    world.tick(1, revision=2)
    assert world.tick(1, revision=2) == "ready"


def test_three_crashes_before_the_first_ready_replica_fail_it() -> None:
    world = World()
    crashes = 0
    for _ in range(100):
        world.tick(1)
        for name, one in list(world.replicas.items()):
            if one.state == "starting":
                world.kill(name)
                crashes += 1
    assert world.tick(1) == "failed"
    assert crashes == 3


def test_scaling_down_stops_what_is_not_ready_first() -> None:
    fleet = [status("old", "ready"), status("young", "ready"), status("new", "loading")]
    plan = reconcile([Want(TARGET, 1, 1)], fleet, (), {}, 0.0)
    assert plan.stop == ["new", "young"]


def test_the_version_before_the_current_one_stays_warm() -> None:
    had = [("m", 1), ("m", 2), ("m", 3), ("m", 4)]
    assert retire(had, {"m": [4]}, {"m": [3]}, {"m": [1]}) == [("m", 2)]


def test_one_that_is_lost_serves_until_as_many_as_are_wanted_are_ready_without_it() -> None:
    lost = replace(status("a", "ready"), lost=True)
    wants, memory = [Want(TARGET, 1, 1)], dict[tuple[str, int], Memory]()
    plan = reconcile(wants, [lost], (), memory, 1.0)
    assert (plan.start, plan.stop, plan.forget) == ([TARGET], [], [])
    plan = reconcile(wants, [lost, status("b", "loading")], (), memory, 2.0)
    assert (plan.start, plan.stop) == ([], [])
    plan = reconcile(wants, [lost, status("b", "ready")], (), memory, 3.0)
    assert (plan.start, plan.stop, plan.standings[TARGET].ready) == ([], ["a"], 1)
    assert reconcile([Want(TARGET, 0, 2)], [lost], (), memory, 4.0).stop == ["a"]
    assert reconcile([], [lost], (), memory, 5.0).stop == ["a"]


def test_one_that_went_with_its_node_is_replaced_at_once_and_is_no_crash_of_the_model() -> None:
    gone = [replace(status(name, "crashed", "node"), lost=True) for name in "abcd"]
    plan = reconcile([Want(TARGET, 4, 1)], gone, (), {}, 1.0)
    assert plan.start == [TARGET] * 4 and sorted(plan.forget) == list("abcd") and len(plan.deaths) == 4
    assert plan.standings[TARGET].state == "requested"
