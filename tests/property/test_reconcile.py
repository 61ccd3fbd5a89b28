"""The deployment manager's decisions against a fleet in virtual time that is late, crashes and scales at random."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, ReplicaSpec, ReplicaState, ReplicaStatus, ServedVersion
from headrace.deploy.reconcile import Memory, Plan, Want, reconcile

TARGET = ("default/m", 1)
TICK_S = 0.2


def status(name: str, state: ReplicaState, detail: str = "") -> ReplicaStatus:
    """A replica; its number of threads is the end of its name: ``r7-2``."""
    served = ServedVersion(0, *TARGET, "onnx", "", "", Signature((), ()), EngineOptions())
    threads = int(name.rpartition("-")[2])
    return ReplicaStatus(ReplicaSpec(name, f"unix:{name}", (served,), threads), state, 1, detail)


@dataclass
class Fleet:
    """Replicas in virtual time. What is asked for happens `late` ticks later, and is only then to be seen."""

    late: int
    replicas: dict[str, ReplicaStatus] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    memory: dict[tuple[str, int], Memory] = field(default_factory=dict)
    orders: list[tuple[int, str, str]] = field(default_factory=list)
    threads: int = 1
    revision: int = 1
    tick_number: int = 0
    started: int = 0

    @property
    def now(self) -> float:
        return self.tick_number * TICK_S

    def named(self, *states: str) -> list[str]:
        return [name for name, one in self.replicas.items() if one.state in states]

    def tick(self, want: int) -> Plan:
        """One look, its invariants, and what follows from it."""
        self.tick_number += 1
        self._carry_out()
        if any(verb == "start" for _, verb, _ in self.orders):
            return Plan()  # as the loop does: what was asked for has not shown yet
        seen = list(self.replicas.values())
        self.draining &= self.replicas.keys()
        live = {s.spec.id for s in seen if s.state in ("starting", "loading", "ready") and not s.stuck} - self.draining
        ready = set(self.named("ready")) - self.draining
        wanted = Want(TARGET, want, self.revision, self.threads)
        plan = reconcile([wanted], seen, self.draining, self.memory, self.now)
        left = live - set(plan.stop)
        surge = int(want > 0 and any(self.outdated(name) for name in live))
        assert len(left) + len(plan.start) <= want + surge, "more than desired"
        assert len(ready - set(plan.stop)) >= min(want, len(ready)), "a ready replica less than could be"
        assert not (plan.start and plan.stop), "starting and stopping at once"
        assert set(plan.forget) <= set(self.named("stopped", "crashed", "failed"))
        self.draining |= set(plan.stop)
        due = self.tick_number + self.late
        self.orders += [(due, "stop", name) for name in plan.stop]
        self.orders += [(due, "forget", name) for name in plan.forget]
        for _ in plan.start:
            self.started += 1
            self.orders.append((due, "start", f"r{self.started}-{self.threads}"))
        return plan

    def outdated(self, name: str) -> bool:
        return not name.endswith(f"-{self.threads}")

    def _carry_out(self) -> None:
        for name in self.named("loading"):
            self.replicas[name] = status(name, "ready")
        for name in self.named("starting"):
            self.replicas[name] = status(name, "loading")
        for order in [order for order in self.orders if order[0] <= self.tick_number]:
            self.orders.remove(order)
            _, verb, name = order
            if verb == "start":
                self.replicas[name] = status(name, "starting")
            elif verb == "stop":
                if name in self.named("starting", "loading", "ready"):
                    self.replicas[name] = status(name, "stopped")
            elif name in self.named("stopped", "crashed", "failed"):
                del self.replicas[name]

    def crash(self, number: int) -> None:
        """Kill one of those that are alive."""
        if alive := self.named("starting", "loading", "ready"):
            name = alive[number % len(alive)]
            self.replicas[name] = status(name, "crashed", "signal SIGKILL")

    def stick(self, name: str, stuck: bool = True) -> None:
        self.replicas[name] = structs.replace(self.replicas[name], stuck=stuck)

    def settle(self, want: int, ticks: int = 200) -> None:
        for _ in range(ticks):
            self.tick(want)


EVENTS = st.lists(st.tuples(st.sampled_from(["want", "crash", "threads", "wait"]), st.integers(0, 5)), max_size=30)


@given(late=st.integers(0, 3), events=EVENTS)
@settings(deadline=None)
def test_it_comes_to_what_is_wanted_and_then_does_nothing(late: int, events: list[tuple[str, int]]) -> None:
    fleet, want = Fleet(late), 2
    fleet.settle(want, 20)
    for event, number in events:
        if event == "want":
            want = number
        elif event == "crash":
            fleet.crash(number)
        elif event == "threads":
            fleet.threads = number
        for _ in range(number if event == "wait" else 1):
            fleet.tick(want)
    fleet.settle(want)
    assert fleet.named("ready") == list(fleet.replicas)
    assert len(fleet.replicas) == want
    assert not any(map(fleet.outdated, fleet.replicas))
    quiet = [fleet.tick(want) for _ in range(20)]
    assert all(not (plan.start or plan.stop or plan.forget) for plan in quiet)


@given(late=st.integers(0, 8))
@settings(deadline=None)
def test_a_crash_is_counted_once_however_long_its_record_is_seen(late: int) -> None:
    fleet = Fleet(late)
    fleet.settle(1, 50)
    fleet.crash(0)
    crashed_at = fleet.now
    while not fleet.named("starting"):
        fleet.tick(1)
        assert fleet.now - crashed_at < 5, "one crash of a steady replica made it pause for long"
    assert fleet.memory[TARGET].crashes == 1


@given(dead_after_s=st.floats(0.2, 20))
@settings(deadline=None, max_examples=20)
def test_what_dies_again_and_again_is_started_less_and_less(dead_after_s: float) -> None:
    fleet, gaps, since = Fleet(0), [], 0
    fleet.tick(1)
    ready_at = None
    while len(gaps) < 9:
        fleet.tick(1)
        if ready := fleet.named("ready"):
            ready_at = ready_at if ready_at is not None else fleet.now
            if fleet.now - ready_at >= dead_after_s:
                fleet.replicas[ready[0]] = status(ready[0], "crashed")
                since, ready_at = fleet.tick_number, None
        elif fleet.named("starting") and since:
            gaps.append(fleet.tick_number - since)
            since = 0
        assert fleet.now < 1e4
    assert gaps == sorted(gaps)
    assert gaps[0] * TICK_S <= 1 and 29 < gaps[-1] * TICK_S < 31


@given(late=st.integers(0, 3), want=st.integers(1, 4))
@settings(deadline=None)
def test_replacing_replicas_never_leaves_fewer_ready_than_wanted(late: int, want: int) -> None:
    fleet = Fleet(late)
    fleet.settle(want, 40)
    fleet.threads = 2
    for _ in range(100):
        fleet.tick(want)
        assert len(fleet.named("ready")) >= want
        assert len(fleet.named("starting", "loading", "ready")) <= want + 1
    assert sorted(map(fleet.outdated, fleet.replicas)) == [False] * want


@given(late=st.integers(0, 3), want=st.integers(1, 4), recovers=st.booleans())
@settings(deadline=None)
def test_a_stuck_replica_has_a_spare_before_it_dies_and_none_once_it_goes_on(
    late: int, want: int, recovers: bool
) -> None:
    fleet = Fleet(late)
    fleet.settle(want, 40)
    victim = fleet.named("ready")[0]
    fleet.stick(victim)
    fleet.settle(want, 40)
    assert victim in fleet.replicas and len(fleet.named("ready")) == want + 1
    if recovers:
        fleet.stick(victim, False)
    else:
        fleet.replicas[victim] = status(victim, "crashed", "watchdog")
    for _ in range(40):
        fleet.tick(want)
        assert len(fleet.named("ready")) >= want
    assert len(fleet.replicas) == want
    assert (victim in fleet.replicas) == recovers
    fleet.stick(fleet.named("ready")[0])
    fleet.settle(0, 40)
    assert not fleet.replicas


def test_a_replacement_that_cannot_serve_leaves_the_old_ones_alone() -> None:
    fleet = Fleet(0)
    fleet.settle(2, 20)
    old, fleet.threads = set(fleet.replicas), 2
    while not fleet.named("loading"):
        fleet.tick(2)
    (new,) = fleet.named("loading")
    fleet.replicas[new] = status(new, "failed", "no room for so many threads")
    fleet.settle(2, 100)
    assert set(fleet.replicas) == old
    standing = fleet.tick(2).standings[TARGET]
    assert (standing.state, standing.ready, standing.detail) == ("failed", 2, "no room for so many threads")


@given(late=st.integers(0, 5))
def test_one_that_failed_is_tried_again_once_it_is_changed(late: int) -> None:
    fleet = Fleet(late)
    while not fleet.named("loading"):
        fleet.tick(1)
    (name,) = fleet.named("loading")
    fleet.replicas[name] = status(name, "failed", "the disk is full")
    assert fleet.tick(1).standings[TARGET].state == "failed"
    fleet.revision = 2  # while the fleet still shows the record of the failure
    fleet.settle(1, 30)
    assert fleet.tick(1).standings[TARGET].state == "ready"


def test_after_a_minute_of_peace_the_pause_is_short_again() -> None:
    fleet = Fleet(0)
    fleet.settle(1, 20)
    for _ in range(6):
        fleet.crash(0)
        while not fleet.named("ready"):
            fleet.tick(1)
    fleet.settle(1, int(61 / TICK_S))
    fleet.crash(0)
    crashed_at = fleet.now
    while not fleet.named("starting"):
        fleet.tick(1)
    assert fleet.now - crashed_at < 1
