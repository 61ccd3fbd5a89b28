"""The states of replicas and deployments, and the steps between them: one table each.

A replica climbs from `starting` (from `pulling` where its artifact is not on the node yet) to `ready` and may end on
any rung; an ended one never comes back, it is replaced.
A deployment is judged anew at every tick, so it may fall from `ready` to `starting` and climb again; what it may not do
is skip its beginning: one that was `stopped` or `draining` is never simply `ready`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from headrace.core.resources import DeploymentState
from headrace.core.specs import ReplicaState

State = TypeVar("State", bound=str)

ENDED: Final = ("stopped", "crashed", "failed")
"""States of a replica whose process is no more."""

REPLICA: Final[Mapping[ReplicaState, tuple[ReplicaState, ...]]] = {
    "pulling": ("starting", "draining", *ENDED),
    "starting": ("loading", "draining", *ENDED),
    "loading": ("warming", "draining", *ENDED),
    "warming": ("warming", "ready", "draining", *ENDED),  # once for each of its versions
    "ready": ("draining", *ENDED),
    "draining": ("draining", *ENDED),  # told to, and then said by itself
    "stopped": (),
    "crashed": (),
    "failed": (),
}

DEPLOYMENT: Final[Mapping[DeploymentState, tuple[DeploymentState, ...]]] = {
    "requested": ("requested", "starting", "ready", "failed", "draining", "stopped"),
    "starting": ("starting", "requested", "ready", "failed", "draining", "stopped"),
    "ready": ("ready", "starting", "requested", "failed", "draining", "stopped"),
    "failed": ("failed", "requested", "starting", "ready", "draining", "stopped"),  # tried again when changed
    "draining": ("draining", "requested", "stopped"),
    "stopped": ("stopped", "requested", "starting", "failed"),  # a last replica may fail on its way out
}


class IllegalTransition(ValueError):
    """A step that the table does not have."""


def step(table: Mapping[State, tuple[State, ...]], old: State, new: State) -> State:
    """`new`, where the table lets `old` become it. Raises IllegalTransition."""
    if new not in table[old]:
        raise IllegalTransition(f"{old} does not become {new}, only {', '.join(table[old]) or 'nothing'}")
    return new
