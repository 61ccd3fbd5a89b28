from __future__ import annotations

from typing import get_args

import pytest

from headrace.core.resources import DeploymentState
from headrace.core.specs import ReplicaEvent, ReplicaState
from headrace.deploy import states
from headrace.deploy.record import ReplicaRecord
from tests.unit.test_reconcile import status


def record() -> ReplicaRecord:
    return ReplicaRecord(status("r", "starting").spec)


def test_the_tables_name_every_state_and_no_other() -> None:
    assert set(states.REPLICA) == set(get_args(ReplicaState))
    assert set(states.DEPLOYMENT) == set(get_args(DeploymentState))
    for table in (states.REPLICA, states.DEPLOYMENT):
        assert all(new in table for following in table.values() for new in following)


@pytest.mark.parametrize("ended", states.ENDED)
def test_an_ended_replica_never_comes_back(ended: ReplicaState) -> None:
    for new in states.REPLICA:
        with pytest.raises(states.IllegalTransition, match=f"{ended} does not become {new}"):
            states.step(states.REPLICA, ended, new)


def test_an_illegal_event_changes_nothing() -> None:
    replica = record()
    replica.said(ReplicaEvent("loading"))
    with pytest.raises(states.IllegalTransition):
        replica.said(ReplicaEvent("starting", "a lie", {"load": 1.0}))
    assert (replica.state, replica.detail, replica.timings_s) == ("loading", "", {})


def test_ready_that_comes_after_it_was_told_to_stop_is_late() -> None:
    replica = record()
    replica.said(ReplicaEvent("loading"))
    replica.said(ReplicaEvent("warming"))
    replica.stop()
    with pytest.raises(states.IllegalTransition):
        replica.said(ReplicaEvent("ready"))
    assert replica.state == "draining"
    replica.ended(-15)
    assert replica.state == "stopped"


@pytest.mark.parametrize(
    ("said", "code", "state", "detail"),
    [
        (["loading"], -9, "crashed", "signal SIGKILL"),
        (["loading"], 1, "crashed", "exit code 1"),
        (["loading", "warming", "ready"], 0, "crashed", "exit code 0"),
        (["loading", "warming", "ready", "draining"], 0, "stopped", ""),
        (["loading", "failed"], 3, "failed", "damaged"),
    ],
)
def test_how_a_replica_ended(said: list[ReplicaState], code: int, state: ReplicaState, detail: str) -> None:
    replica = record()
    for one in said:
        replica.said(ReplicaEvent(one, "damaged" if one == "failed" else ""))
    replica.ended(code)
    assert (replica.state, replica.detail) == (state, detail)
