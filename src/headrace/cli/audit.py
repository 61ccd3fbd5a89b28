"""``headrace audit``: whether the audit is as it was written."""

from __future__ import annotations

import time
from typing import Annotated

import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json
from headrace.cli.traffic import moment

audit = typer.Typer(help="Whether the audit is as it was written.", no_args_is_help=True)


@audit.command("head")
@output.guarded
def head(json: Json = False) -> None:
    """The last row's id and hash: keep it elsewhere, and give it to `verify --anchor` later."""
    with headrace.Client() as client:
        found = client.audit.head()
    output.json(found) if json else output.console.print(f"{found.change}:{found.hash}")


@audit.command("verify")
@output.guarded
def verify(
    since: Annotated[str | None, typer.Option(help="A time (RFC 3339), or how long ago: 90s, 30m, 1h, 7d.")] = None,
    anchor: Annotated[str | None, typer.Option(help="CHANGE:HASH that `audit head` wrote earlier.")] = None,
    json: Json = False,
) -> None:
    """Compute every hash of the audit again; exit 1, and the first broken row, where one does not fit."""
    with headrace.Client() as client:
        found = client.audit.verify(moment(since, time.time()), anchor)
    if json:
        output.json(found)
    elif found.broken is None:
        rows = "row is" if found.checked == 1 else "rows are"
        output.console.print(f"{found.checked} {rows} as written; head {found.head.change}:{found.head.hash}")
    else:
        output.console.print(f"change {found.broken.change} is broken: {found.broken.reason}", style="red")
        output.console.print(f"{found.checked} before it are as written", style="dim")
    raise SystemExit(0 if found.ok else output.REFUSED)
