"""The background optimiser's place in the control plane: now and then it is shown the fleet, in a process of its own,
and its moves are handed to the deployment manager. Only the leader does this."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable

import msgspec

from headrace.controlplane import placing
from headrace.controlplane.placing import Placing
from headrace.controlplane.publisher import Publisher
from headrace.controlplane.store import Store
from headrace.core.database import now
from headrace.core.errors import Unavailable
from headrace.core.resources import PlacementPlan, PlannedMove
from headrace.core.specs import ReplicaStatus
from headrace.deploy.rebalance import Item, Move, Problem, Solution
from headrace.deploy.reconcile import Standing, Target, target_of

log = logging.getLogger("headrace.rebalancing")
LIMIT_S = 90.0
"""How long the optimiser may think."""
GRACE_S = 30.0
"""How much longer its process may live."""


class Rebalancing:
    """Looks for moves.

    Args:
        interval_s: between two looks; 0: never.
        moved: is called when there are moves to begin.
    """

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        place: Placing,
        statuses: Callable[[], tuple[ReplicaStatus, ...]],
        standings: Callable[[], dict[Target, Standing]],
        interval_s: float,
        moved: Callable[[], None],
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._placing = place
        self._statuses = statuses
        self._standings = standings
        self._interval_s = interval_s
        self._moved = moved
        self._solution = Solution((), 0.0, 0.0, 0.0)
        self._at: str | None = None
        self._failure = ""

    def why_not(self) -> str:
        """Why nothing is looked for; empty when it is."""
        if not self._interval_s:
            return "off: the setting rebalance_s is 0"
        if len(self._placing.devices()) < 2:
            return "nothing to do: the fleet has one device"
        if importlib.util.find_spec("ortools") is None:
            return "greedy placement only: install headrace[optimizer] for the optimiser"
        return self._failure

    def plan(self) -> PlacementPlan:
        """What was found last."""
        found = self._solution
        detail = self.why_not() or f"looks every {self._interval_s:g} s"
        moves = [shown(move) for move in self._placing.moves.values()]
        return PlacementPlan(detail, self._at, found.price_per_h, found.price_after_per_h, found.bound_per_h, moves)

    async def run(self) -> None:
        """Look again and again."""
        while self._interval_s:
            await asyncio.sleep(self._interval_s)
            self._failure = ""
            if self.why_not():
                continue
            try:
                await self.look()
            except (Unavailable, OSError, TimeoutError, msgspec.MsgspecError) as error:
                self._failure = f"the last look failed: {error or type(error).__name__}"
                log.warning("no moves: %s", self._failure)

    async def look(self) -> None:
        """One look: what was planned before and has not begun is forgotten."""
        spent = await self._store.read(placing.moved_lately)
        problem = Problem(self._placing.devices(), dict(self._placing.tiers), self._items(spent), LIMIT_S, workers=1)
        self._solution = await solve(problem)
        self._at = now()
        begun = {id_: move for id_, move in self._placing.moves.items() if id_ in self._placing.begun}
        self._placing.moves = {move.replica: move for move in self._solution.moves} | begun
        if self._placing.moves:
            self._moved()

    def _items(self, spent: set[str]) -> tuple[Item, ...]:
        """The replicas. Only those of deployments at rest move, of models with budget left."""
        desired = {(m.id, d.version): d for m in self._publisher.state.models.values() for d in m.deployments}
        standings, items = self._standings(), []
        for status, demand in self._placing.running(self._statuses()):
            target = target_of(status)
            wanted, standing = desired.get(target), standings.get(target)
            rests = status.state == "ready" and not status.stuck and wanted is not None and standing is not None
            rests = rests and standing is not None and standing.state == "ready" and not standing.detail
            items.append(placing.item_of(status, demand, wanted, rests and target[0] not in spent))
        return tuple(items)


async def solve(problem: Problem) -> Solution:
    """Have the optimiser think, in a process that ends with its answer, or with this. Raises OSError, TimeoutError,
    MsgspecError."""
    process = await asyncio.create_subprocess_exec(
        "nice",
        sys.executable,
        "-m",
        "headrace.deploy.optimise",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(problem.limit_s + GRACE_S):
            answer, _ = await process.communicate(msgspec.json.encode(problem))
        if process.returncode:
            raise OSError(f"the optimiser ended with {process.returncode}")
        return msgspec.json.decode(answer, type=Solution)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def shown(move: Move) -> PlannedMove:
    """A move as the API shows it."""
    tenant, _, model = move.model.partition("/")
    version = int(move.group.rpartition("@")[2])
    return PlannedMove(model, tenant, version, move.replica, move.source, move.target)
