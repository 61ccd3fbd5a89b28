"""Which models of a pack stay in memory: GreedyDual-Size-Frequency. Pure.

A model's priority is ``clock + frequency x reload cost / size``: what it would cost to lose it, per byte that it holds.
The one with the least leaves first, and the clock moves to its priority, so that what was asked for often, long ago,
ages (L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", HPL-98-69R1).

A model that is being loaded holds its bytes already, and nothing that is at work is evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class Resident:
    """A model in memory."""

    bytes: int
    cost_s: float
    """Of loading it again."""
    frequency: int
    priority: float


class Residency(Generic[Key]):
    """The models in memory, with what they take."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.used_bytes = 0
        self.residents: dict[Key, Resident] = {}

    def admit(self, key: Key, size: int, cost_s: float) -> None:
        """A model is loaded: it takes `size` bytes, and would cost `cost_s` to load again. One that is here already
        changes its numbers."""
        before = self.residents.get(key)
        frequency = 1 if before is None else before.frequency
        self.used_bytes += size - (0 if before is None else before.bytes)
        self.residents[key] = Resident(size, cost_s, frequency, self._priority(size, cost_s, frequency))

    def touch(self, key: Key, requests: int = 1) -> None:
        """A model that is here was asked for."""
        one = self.residents[key]
        one.frequency += requests
        one.priority = self._priority(one.bytes, one.cost_s, one.frequency)

    def remove(self, key: Key, evicted: bool = False) -> None:
        """A model leaves; `evicted`: to make room, which is what the clock goes by."""
        one = self.residents.pop(key)
        self.used_bytes -= one.bytes
        if evicted:
            self.clock = max(self.clock, one.priority)

    def victims(self, size: int, room_bytes: int, busy: Callable[[Key], bool]) -> list[Key] | None:
        """Who has to leave so that `size` more bytes fit into `room_bytes`: those with the least priority, and of
        equals those that came first. None while too much of the rest is at work.

        Args:
            size: of the model that is to come.
            room_bytes: that all models together may take.
            busy: whether a model is at work.
        """
        excess = self.used_bytes + size - room_bytes
        if excess <= 0:
            return []
        chosen = []
        for key in sorted(self.residents, key=lambda key: self.residents[key].priority):
            if not busy(key):
                chosen.append(key)
                excess -= self.residents[key].bytes
                if excess <= 0:
                    return chosen
        return None

    def _priority(self, size: int, cost_s: float, frequency: int) -> float:
        # In ms per MB: with seconds per byte the clock would soon swallow the difference.
        return self.clock + frequency * (cost_s * 1e3) / (max(size, 1) / 1e6)
