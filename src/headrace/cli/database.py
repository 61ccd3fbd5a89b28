"""``headrace db``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import output
from headrace.core.config import load
from headrace.core.errors import InvalidInput
from headrace.core.secret import redacted

db = typer.Typer(help="The control plane's store.", no_args_is_help=True)


@db.command("copy")
@output.guarded
def copy(
    data: Annotated[str | None, typer.Option(help="Folder of the platform, which is stopped.")] = None,
    database: Annotated[str | None, typer.Option(help="PostgreSQL URL, of a database with nothing in it.")] = None,
    file: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None,
) -> None:
    """Copy a platform's store from SQLite to PostgreSQL: all of it, or nothing."""
    settings = load(file, os.environ, {"data": data, "database": database}).settings
    if not settings.database:
        raise InvalidInput("database: not set, expected the URL of a PostgreSQL database", field="database")
    from headrace.controlplane.copying import copy_store  # the platform itself, which other commands do without
    from headrace.deploy.place import lock

    folder = Path(settings.data).expanduser().resolve()
    if not (folder / "headrace.db").exists():
        raise InvalidInput(f"data: there is no headrace.db in {folder}", field="data")
    with lock(folder):  # nothing is written to it meanwhile
        rows = copy_store(
            f"sqlite:///{folder / 'headrace.db'}",
            settings.database,
            lambda table, count: output.console.print(f"{table:<12}{count:>9} rows"),
        )
    output.console.print(f"copied {rows} rows to {redacted(settings.database)}")
