"""``headrace artifacts``: what versions are made of, and what is on its way in."""

from __future__ import annotations

from typing import Annotated

import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json

artifacts = typer.Typer(help="Artifacts: the files that versions are made of.", no_args_is_help=True)
SHOWN = 12
"""Digits of a digest in a table."""


@artifacts.command("list")
@output.guarded
def list_(json: Json = False) -> None:
    """Every artifact, and the versions that need it (admin)."""
    with headrace.Client() as client:
        found, cursor = [], None
        while True:
            page = client.artifacts.list(cursor)
            found += page.items
            if (cursor := page.next) is None:
                break
    if json:
        return output.json(found)
    rows = (
        (
            a.digest[:SHOWN],
            output.size(a.size_bytes),
            a.stored_at,
            ", ".join(a.versions) or "none: headrace artifacts gc",
        )
        for a in found
    )
    output.table(("SHA256", "SIZE", "STORED", "VERSIONS"), rows, "no artifacts yet: headrace models push NAME FILE")


@artifacts.command("gc")
@output.guarded
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    grace_s: Annotated[float | None, typer.Option(help="Keep what was put or asked for so lately.")] = None,
    json: Json = False,
) -> None:
    """Remove artifacts that no version needs (admin). The platform does it by itself each hour."""
    with headrace.Client() as client:
        outcome = client.artifacts.collect(dry_run, grace_s)
    if json:
        return output.json(outcome)
    found = outcome.result
    rows = ((a.digest[:SHOWN], output.size(a.size_bytes)) for a in found.removed)
    output.table(("SHA256", "SIZE"), rows, "nothing to remove")
    verb = "would go" if dry_run else "removed"
    output.console.print(f"{verb}: {len(found.removed)}, {output.size(found.bytes_removed)}; {found.kept} stay")
    for digest in found.missing:
        output.console.print(f"missing: {digest} of a version; send it again: headrace models push ... --force")


@artifacts.command("uploads")
@output.guarded
def uploads(json: Json = False) -> None:
    """Uploads in progress: pushing the same file again goes on with one."""
    with headrace.Client() as client:
        found = client.artifacts.uploads().items
    if json:
        return output.json(found)
    rows = (
        (u.id, u.digest[:SHOWN], f"{output.size(u.offset)} of {output.size(u.size_bytes)}", u.expires_at) for u in found
    )
    output.table(("UPLOAD", "SHA256", "ARRIVED", "EXPIRES"), rows, "no uploads in progress")


@artifacts.command("cancel")
@output.guarded
def cancel(upload: Annotated[str, typer.Argument(help="Its id.")], json: Json = False) -> None:
    """Give an upload up."""
    with headrace.Client() as client:
        given_up = client.artifacts.cancel(upload)
    output.json(given_up) if json else output.console.print(f"upload {upload} is given up")
