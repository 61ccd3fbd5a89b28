"""Which models a tick of the deployment manager looks at: those whose desired state or replicas have changed since the
last look, and those that may move with time alone. All others are as the last look left them, so that a tick costs what
has changed and not what is deployed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from headrace.controlplane.routing_state import NOTHING, ModelState, RoutingState
from headrace.core.specs import ReplicaStatus
from headrace.deploy.reconcile import Memory, Plan, Target, target_of
from headrace.deploy.states import ENDED


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at."""

    names: set[str]
    """``tenant/name``; replicas may serve models that nobody knows any more."""
    models: dict[int, ModelState]
    targets: set[Target]
    """Their deployments, wanted now or at the last look."""
    statuses: list[ReplicaStatus]
    """Their replicas, oldest first."""


class Attention:
    """Remembers the last look. A look that fails is not remembered: the next has the same scope and more."""

    def __init__(self) -> None:
        self._state = NOTHING
        self._numbers: dict[str, int] = {}
        self._replicas: dict[str, tuple[str, str, bool, bool]] = {}
        """Replica -> (model, state, stuck, lost)."""
        self._restless: set[str] = set()

    def also(self, models: Iterable[str]) -> None:
        """Look at these too the next time, whether they have moved or not."""
        self._restless |= set(models)

    def scope(
        self, state: RoutingState, statuses: Sequence[ReplicaStatus], moved_in_packs: Collection[str] = ()
    ) -> Scope:
        """What has moved since the last look, and what was restless then."""
        changed = [int(id_) for id_ in state.changed_since(self._state.revision)["model"]]
        for number in changed:
            self._numbers[state.models[number].id] = number
        moved = _replicas(statuses).items() ^ self._replicas.items()
        names = (
            self._restless
            | set(moved_in_packs)
            | {state.models[number].id for number in changed}
            | {model for _, (model, *_) in moved}
        )
        models = {self._numbers[name]: state.models[self._numbers[name]] for name in names if name in self._numbers}
        before = [self._state.models[number] for number in models if number in self._state.models]
        targets = {(model.id, d.version) for model in (*models.values(), *before) for d in model.deployments}
        return Scope(names, models, targets, [status for status in statuses if target_of(status)[0] in names])

    def looked(
        self,
        state: RoutingState,
        statuses: Sequence[ReplicaStatus],
        scope: Scope,
        plan: Plan,
        memory: dict[Target, Memory],
    ) -> None:
        """Remember a look: `plan` is what `reconcile` decided for `scope`, and everything in it was carried out."""
        self._state = state
        self._replicas = _replicas(statuses)
        waiting = {
            target[0]
            for target, standing in plan.standings.items()
            if standing.state not in ("stopped", "failed") and (standing.detail or memory[target].crashes)
        }
        stopped = set(plan.stop)  # they count no more at the next look
        leaving = {target_of(s)[0] for s in scope.statuses if s.state in ENDED or s.spec.id in stopped}
        self._restless = waiting | leaving | {model for model, _ in plan.start}


def _replicas(statuses: Collection[ReplicaStatus]) -> dict[str, tuple[str, str, bool, bool]]:
    return {one.spec.id: (target_of(one)[0], one.state, one.stuck, one.lost) for one in statuses}
