"""``headrace devices`` and ``headrace placement``."""

from __future__ import annotations

import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json


def devices(json: Json = False) -> None:
    """Where replicas run, what they take of it, and what it costs."""
    with headrace.Client() as client:
        found = client.devices()
    if json:
        return output.json(found)
    rows = (
        (
            d.id,
            d.tier + (" spot" if d.spot else ""),
            f"{d.memory_used_mb / 1024:.1f}/{d.memory_mb / 1024:.1f}",
            f"{d.compute_used:g}/{d.compute:g}",
            d.replicas,
            f"{d.price_per_h:.2f}",
        )
        for d in found
    )
    output.table(("DEVICE", "TIER", "MEMORY GIB", "COMPUTE", "REPLICAS", "PRICE/H"), rows, "the fleet has no devices")


def placement(json: Json = False) -> None:
    """The moves that the background optimiser is making, and what they save."""
    with headrace.Client() as client:
        found = client.placement()
    if json:
        return output.json(found)
    output.console.print(f"optimiser: {found.detail}")
    if found.at is not None:
        output.console.print(
            f"at {found.at}: {found.price_per_h:.2f}/h in use, {found.price_after_per_h:.2f}/h after its moves, "
            f"at least {found.bound_per_h:.2f}/h"
        )
    rows = ((f"{m.tenant}/{m.model}@{m.version}", m.replica, m.source, m.target) for m in found.moves)
    output.table(("DEPLOYMENT", "REPLICA", "FROM", "TO"), rows, "no moves to be made")


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (devices, placement):
        app.command()(output.guarded(command))
