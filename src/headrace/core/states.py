"""Steps of state machines, each of which is one table: state -> the states that it may become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

State = TypeVar("State", bound=str)


class IllegalTransition(ValueError):
    """A step that the table does not have."""


def step(table: Mapping[State, tuple[State, ...]], old: State, new: State) -> State:
    """`new`, where the table lets `old` become it. Raises IllegalTransition."""
    if new not in table[old]:
        raise IllegalTransition(f"{old} does not become {new}, only {', '.join(table[old]) or 'nothing'}")
    return new
