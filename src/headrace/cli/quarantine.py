"""``headrace quarantine``: inputs that have killed replicas, and are refused."""

from __future__ import annotations

from typing import Annotated

import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json, Reference, Tenant, Why, complete_model, qualified

quarantine = typer.Typer(help="Inputs that have killed replicas, and are refused.", no_args_is_help=True)


@quarantine.command("list")
@output.guarded
def list_(
    model: Annotated[
        str | None, typer.Argument(help="All models when left out.", autocompletion=complete_model)
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """What is refused, since when and until when."""
    with headrace.Client() as client:
        found = client.quarantine.list(model, tenant)
    if json:
        return output.json(found)
    rows = ((f"{q.tenant}/{q.model}@{q.version}", q.digest, q.at, q.until) for q in found.items)
    output.table(("VERSION", "DIGEST", "SINCE", "UNTIL"), rows, "nothing is in quarantine")


@quarantine.command("lift")
@output.guarded
def lift(
    reference: Reference,
    digest: Annotated[str | None, typer.Argument(help="Or how it begins; all of the version's when left out.")] = None,
    why: Why = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Let an input through again."""
    with headrace.Client() as client:
        outcome = client.quarantine.lift(qualified(reference, tenant), digest, why)
        left = len(outcome.result.items)
        text = f"{reference}: lifted, {left} still in quarantine"
        output.json(outcome) if json else output.done(client, text, outcome.change)
