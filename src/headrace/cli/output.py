"""How the command line speaks: tables for people, JSON for programs, one clear line for an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

from headrace.core.errors import HeadraceError, Unreachable
from headrace.core.resources import ChangeRef

P = ParamSpec("P")
T = TypeVar("T")
console = Console(highlight=False, soft_wrap=True)
REFUSED, UNREACHABLE = 1, 3


def json(value: object) -> None:
    """The API's own structs, for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], empty: str) -> None:
    """A table; `empty` says what to do when there is nothing to show."""
    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    count = 0
    for row in rows:
        shown.add_row(*("" if item is None else str(item) for item in row))
        count += 1
    console.print(shown if count else empty)


def done(text: str, change: ChangeRef) -> None:
    """What happened, whether the routers have it, how to undo it."""
    effect = ""
    if change.effective_ms is not None:
        effect = f" (in effect after {change.effective_ms:.0f} ms)"
        if not change.effective:
            effect = " (not yet in effect on every router; it will follow)"
    console.print(text + effect)
    if change.undo:
        console.print(f"undo: {change.undo}", style="dim")


def weights(split: dict[str, float]) -> str:
    """``1: 90 %, 2: 10 %``"""
    return ", ".join(f"{version}: {percent:g} %" for version, percent in split.items()) or "none"


def fail(error: HeadraceError) -> NoReturn:
    """One line on standard error, and what to type next."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    raise SystemExit(UNREACHABLE if isinstance(error, Unreachable) else REFUSED)


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """A command whose errors are told in one line, never as a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return command(*args, **kwargs)
        except HeadraceError as error:
            fail(error)
        except BrokenPipeError:
            raise SystemExit(0) from None

    return run
