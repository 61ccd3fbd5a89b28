"""What the optimiser is asked and answers, and which of its moves may begin now. Pure.

A move is a replica that is to run on another device: a new one is started there and, once it is ready, the old one
drained. A model moves at most once a day, so a plan holds at most one move for each, and none for those that have moved
lately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from headrace.core.devices import PROCESSORS, Device, Tier
from headrace.deploy.placement import Demand, Packing

BUDGET_S = 86_400.0
"""A model moves at most once in so long."""
MOVE_PRICE_PER_H = 0.005
"""What a move must save, as price per hour: while it lasts a replica runs twice, and its successor begins cold."""


class Item(msgspec.Struct, frozen=True):
    """A replica as the optimiser sees it."""

    id: str
    model: str
    """``tenant/name``: whose budget a move is taken from."""
    group: str
    """Replicas of one go to distinct devices."""
    device: str
    memory_mb: float
    compute: float | None = None
    tiers: tuple[str, ...] = (PROCESSORS,)
    spot: bool = False
    replicas: int = 1
    movable: bool = True

    @property
    def demand(self) -> Demand:
        """What it takes."""
        return Demand(self.group, self.memory_mb, self.compute, self.tiers, self.spot, self.replicas)


class Problem(msgspec.Struct, frozen=True):
    """The fleet at one moment."""

    devices: tuple[Device, ...]
    tiers: dict[str, Tier]
    items: tuple[Item, ...]
    limit_s: float = 60.0
    """How long the optimiser may think."""
    seed: int = 0
    workers: int = 2


class Move(msgspec.Struct, frozen=True):
    """A replica that is to run elsewhere."""

    replica: str
    model: str
    group: str
    source: str
    """Ids of devices."""
    target: str


class Solution(msgspec.Struct, frozen=True):
    """What the optimiser found."""

    moves: tuple[Move, ...]
    price_per_h: float
    """Of the devices in use now."""
    price_after_per_h: float
    """Once all moves are made."""
    bound_per_h: float
    """Less it cannot be: the linear relaxation's price, for replicas that might be split, and moved freely."""


def packing_of(problem: Problem) -> Packing:
    """The fleet with all its replicas where they are."""
    packing = Packing(problem.devices, problem.tiers)
    for item in problem.items:
        packing.take(item.device, item.demand)
    return packing


def may_begin(moves: Sequence[Move], items: Mapping[str, Item], packing: Packing) -> list[Move]:
    """The moves whose target has room for a second replica now, together with those before them in order. The others
    wait: what they wait for may be another move's end.

    Args:
        moves: in order; their replicas run.
        items: all replicas by id.
        packing: where they are; the moves that may begin are counted to it.
    """
    found = []
    for move in moves:
        item = items[move.replica]
        # While it moves, one replica more than wanted runs, and they still are on distinct devices.
        demand = replace(item.demand, replicas=max(item.replicas, 1))
        k = packing.index.get(move.target)
        if k is not None and packing.room(demand)[k]:
            packing.take(move.target, demand)
            found.append(move)
    return found
