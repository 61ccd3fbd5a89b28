"""``headrace traffic``, ``rollback`` and ``changes``: which version answers whom, and who decided it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json, Model, Tenant, Why, complete_model, numbers, qualified
from headrace.core.names import read_version

if TYPE_CHECKING:
    from headrace import Client
    from headrace.core.resources import Change, Outcome, Traffic

traffic = typer.Typer(help="Which version answers whom.", no_args_is_help=True)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def tell(client: Client, outcome: Outcome[Traffic], json: bool) -> None:
    """A traffic policy that has just changed."""
    if json:
        return output.json(outcome)
    policy = outcome.result
    pins = "".join(f", {name} pinned to {version}" for name, version in policy.overrides.items())
    output.done(client, f"{policy.model}: {output.weights(policy.weights)}{pins}", outcome.change)


@traffic.command("show")
@output.guarded
def show(model: Model, tenant: Tenant = None, json: Json = False) -> None:
    """A model's split, pins, and what a rollback would do."""
    with headrace.Client() as client:
        policy = client.traffic.show(qualified(model, tenant))
    if json:
        return output.json(policy)
    output.console.print(f"{policy.model}: {output.weights(policy.weights)}")
    for name, pinned in policy.overrides.items():
        output.console.print(f"  {name} is pinned to {pinned}")
    if policy.previous is not None:
        output.console.print(f"headrace rollback {policy.model} gives {output.weights(policy.previous)}", style="dim")


@traffic.command("set")
@output.guarded
def set_(
    model: Model,
    split: Annotated[list[str], typer.Argument(help="VERSION=PERCENT ..., by number or alias, adding up to 100.")],
    why: Why = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Split a model's traffic; units keep their version unless their own slot must move."""
    with headrace.Client() as client:
        tell(client, client.traffic.set(qualified(model, tenant), numbers(split, "VERSION=PERCENT"), why), json)


@traffic.command("pin")
@output.guarded
def pin(
    model: Model,
    pinned: Annotated[str, typer.Argument(metavar="TENANT", help="Who is pinned.")],
    version: Annotated[str, typer.Argument(help="To which version, by number or alias.")],
    why: Why = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Send all of a tenant's requests to one version."""
    with headrace.Client() as client:
        tell(client, client.traffic.pin(qualified(model, tenant), pinned, read_version(version), why), json)


@traffic.command("unpin")
@output.guarded
def unpin(
    model: Model,
    pinned: Annotated[str, typer.Argument(metavar="TENANT", help="Who is let go.")],
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Let a tenant follow the split again."""
    with headrace.Client() as client:
        tell(client, client.traffic.unpin(qualified(model, tenant), pinned), json)


@traffic.command("history")
@output.guarded
def history(model: Model, tenant: Tenant = None, json: Json = False) -> None:
    """Every routing change: who, when, from, to."""
    with headrace.Client() as client:
        page = client.traffic.history(qualified(model, tenant))
    output.json(page) if json else show_changes(page.items)


def rollback(model: Model, why: Why = None, tenant: Tenant = None, json: Json = False) -> None:
    """Put back the split before the one in force; again: undo that."""
    with headrace.Client() as client:
        tell(client, client.traffic.rollback(qualified(model, tenant), why), json)


def changes(
    model: Annotated[str | None, typer.Argument(help="Of one model.", autocompletion=complete_model)] = None,
    since: Annotated[str | None, typer.Option(help="A time (RFC 3339), or how long ago: 90s, 30m, 1h, 7d.")] = None,
    limit: Annotated[int, typer.Option(help="Most rows.")] = 50,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """The audit: every change, newest first."""
    with headrace.Client() as client:
        page = client.changes(model, moment(since, time.time()), limit, tenant)
    output.json(page) if json else show_changes(page.items)


def moment(text: str | None, now: float) -> str | None:
    """A time that the API takes. Raises typer.BadParameter for a duration in no known unit."""
    if text is None or "T" in text:
        return text
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"{text!r}, expected a time or a duration such as 30m, 1h or 7d", param_hint="--since")
    at = now - int(found[1]) * SECONDS[found[2]]
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def show_changes(found: list[Change]) -> None:
    """Audit rows."""
    rows = ((c.id, c.at, c.actor, c.action, c.entity, _brief(c.before), _brief(c.after), c.reason) for c in found)
    output.table(("ID", "AT", "WHO", "WHAT", "ENTITY", "FROM", "TO", "WHY"), rows, "no changes")


def _brief(value: dict[str, Any] | None) -> str:
    """What changed: splits as splits, the rest as JSON."""
    if value is None:
        return ""
    split = value.get("weights")
    return output.weights(split) if isinstance(split, dict) else msgspec.json.encode(value).decode()


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(traffic, name="traffic")
    for command in (rollback, changes):
        app.command()(output.guarded(command))
