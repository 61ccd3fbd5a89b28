"""Restarts of a crashing deployment: the pauses between them, and the states that it goes through."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.resources import DeploymentState
from headrace.deploy import states
from headrace.deploy.reconcile import BACKOFF_S, CALM_S, Memory, Target, Want, pause_s, reconcile
from tests.unit.test_reconcile import TARGET, World, status

READY = status("r", "ready")
CRASHED = status("r", "crashed", "signal SIGSEGV")


def crash(memory: dict[Target, Memory], now: float) -> float:
    """A crash of the only replica; the pause until it may start again."""
    plan = reconcile([Want(TARGET, 1, 1)], [CRASHED], (), memory, now)
    assert not plan.start and plan.wake_at is not None
    return plan.wake_at - now


def test_pauses_double_up_to_the_longest_and_are_short_again_after_a_calm_minute() -> None:
    memory: dict[Target, Memory] = {}
    wants = [Want(TARGET, 1, 1)]
    now, pauses = 0.0, []
    for _ in range(10):  # ready each time, and dead at once
        reconcile(wants, [READY], (), memory, now)
        pauses.append(round(crash(memory, now), 6))
        now += 40.0
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    reconcile(wants, [READY], (), memory, now)
    reconcile(wants, [READY], (), memory, now + CALM_S)
    assert round(crash(memory, now + CALM_S), 6) == BACKOFF_S[0]


def test_a_minute_that_was_not_calm_resets_nothing() -> None:
    memory: dict[Target, Memory] = {}
    wants = [Want(TARGET, 2, 1)]
    reconcile(wants, [READY, CRASHED], (), memory, 0.0)
    reconcile(wants, [READY], (), memory, 100.0)  # one of two is no calm
    assert memory[TARGET].crashes == 1


@given(st.integers(1, 100_000))
def test_every_pause_is_within_bounds(crashes: int) -> None:
    assert BACKOFF_S[0] <= pause_s(crashes) <= BACKOFF_S[1]


@given(st.lists(st.one_of(st.integers(0, 4), st.sampled_from(["kill", "fail", "change"])), max_size=30))
def test_a_deployment_only_makes_the_steps_of_its_table(events: list[int | str]) -> None:
    world, want, revision = World(), 1, 1
    seen: DeploymentState = "requested"
    for event in events:
        if isinstance(event, int):
            want = event
        elif event == "change":
            revision += 1
        elif world.replicas:
            name = next(iter(world.replicas))
            world.replicas[name] = status(name, "crashed" if event == "kill" else "failed", event)
        new: DeploymentState = world.tick(want, revision)  # type: ignore[assignment]
        seen = states.step(states.DEPLOYMENT, seen, new)
