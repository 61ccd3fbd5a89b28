"""How the command line speaks: tables for people, JSON for programs, one clear line for an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from headrace.core.errors import HeadraceError, InvalidInput, PlatformFault, Unreachable

if TYPE_CHECKING:
    from headrace import Client
    from headrace.core.resources import ChangeRef

P = ParamSpec("P")
T = TypeVar("T")
PIPE_WIDTH = 10_000
"""Columns where there is no terminal: nothing is cut or wrapped for a program that reads it."""
console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
REFUSED, UNREACHABLE = 1, 3
INTERRUPTED = 130
TYPERS = (typer.BadParameter, typer.Exit, typer.Abort)
"""What Typer itself tells of."""
WHERE = "with PYTHONDEVMODE=1 it says where; please report it"


def json(value: object) -> None:
    """The API's own structs, for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], empty: str) -> None:
    """A table; `empty` says what to do when there is nothing to show."""
    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        shown.add_row(*("-" if item is None or item == "" else str(item) for item in row))
    console.print(shown if shown.row_count else empty)


def done(client: Client, text: str, change: ChangeRef) -> None:
    """What happened, whether the routers have it, how to undo it."""
    console.print(text)
    if change.effective_ms is not None and change.effective:
        routers = sum(router.connected for router in client.status().routers)
        noun = "router" if routers == 1 else "routers"
        console.print(f"in effect on {routers} {noun} after {change.effective_ms:.0f} ms", style="dim")
    elif not change.effective:
        console.print("not yet in effect on every router; it will follow: headrace status", style="yellow")
    if change.undo:
        console.print(f"undo: {change.undo}", style="dim")


@contextmanager
def upload_bar(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, and what to tell it: bytes sent, and bytes in all. None is shown where nobody looks."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True, disable=quiet or not sys.stdout.isatty()) as bar:
        task = bar.add_task("upload", total=None)
        yield lambda sent, total: bar.update(task, completed=sent, total=total)


def weights(split: dict[str, float]) -> str:
    """``1: 90 %, 2: 10 %``"""
    return ", ".join(f"{version}: {percent:g} %" for version, percent in split.items()) or "none"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def fail(error: HeadraceError) -> NoReturn:
    """One line on standard error, with the field at fault, and what to type next."""
    field = f" [{error.field}]" if error.field and error.field not in error.message else ""
    message = " ".join(error.message.split())
    print(f"error: {message}{field}", file=sys.stderr)
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
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            sys.stderr.close()
            raise SystemExit(0) from None
        except OSError as error:  # a file of the caller's
            fail(InvalidInput(f"{error.filename}: {error.strerror}" if error.filename else str(error)))
        except Exception as error:
            if sys.flags.dev_mode or isinstance(error, TYPERS):
                raise
            fail(PlatformFault(f"a fault of headrace: {type(error).__name__}: {error}", hint=WHERE))

    return run
