"""``headrace tenants`` and ``headrace keys``."""

from __future__ import annotations

import sys
from typing import Annotated, Any, get_args

import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json, Tenant, Why, Yes, one_of
from headrace.core.resources import ROLES, Approval

tenants = typer.Typer(help="Teams and their quotas.", no_args_is_help=True)
keys = typer.Typer(help="API keys.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The tenant's name.")]
Rate = Annotated[float | None, typer.Option(help="Requests a second, sustained.")]
Burst = Annotated[float | None, typer.Option(help="Requests that may come at once (at least 1).")]
InFlight = Annotated[int | None, typer.Option(help="Requests at the same time.")]
COLUMNS = ("TENANT", "STATE", "RATE/S", "BURST", "IN FLIGHT", "APPROVAL", "CREATED")
RULE = "Before traffic: optional, required or four-eyes."
ApprovalOption = Annotated[str | None, typer.Option("--approval", help=RULE, callback=one_of(*get_args(Approval)))]


def _row(tenant: Any) -> tuple[object, ...]:
    quota = tenant.quota
    return (
        tenant.name,
        tenant.state,
        f"{quota.rate_per_s:g}",
        f"{quota.burst:g}",
        quota.max_in_flight,
        tenant.approval,
        tenant.created_at,
    )


@tenants.command("list")
@output.guarded
def list_tenants(json: Json = False) -> None:
    """All tenants."""
    with headrace.Client() as client:
        page = client.tenants.list()
    output.json(page) if json else output.table(COLUMNS, map(_row, page.items), "no tenants")


@tenants.command("show")
@output.guarded
def show_tenant(name: Name, json: Json = False) -> None:
    """A tenant's state and quota."""
    with headrace.Client() as client:
        found = client.tenants.show(name)
    output.json(found) if json else output.table(COLUMNS, [_row(found)], "")


@tenants.command("create")
@output.guarded
def create_tenant(
    name: Name,
    rate: Rate = None,
    burst: Burst = None,
    max_in_flight: InFlight = None,
    approval: ApprovalOption = None,
    json: Json = False,
) -> None:
    """Create a tenant."""
    from headrace.core.resources import Quota

    given = {"rate_per_s": rate, "burst": burst, "max_in_flight": max_in_flight}
    limits: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    with headrace.Client() as client:
        chosen: Any = approval or "optional"
        outcome = client.tenants.create(name, Quota(**limits), chosen)
        if json:
            return output.json(outcome)
        output.done(client, f"tenant {name} created", outcome.change)
        output.console.print(f"next: headrace keys create --tenant {name} --role developer", style="dim")


@tenants.command("update")
@output.guarded
def update_tenant(
    name: Name,
    rate: Rate = None,
    burst: Burst = None,
    max_in_flight: InFlight = None,
    state: Annotated[
        str | None, typer.Option(help="active or suspended.", callback=one_of("active", "suspended"))
    ] = None,
    approval: ApprovalOption = None,
    why: Why = None,
    json: Json = False,
) -> None:
    """Change a tenant's quota or its rule of approval, or suspend it."""
    from headrace.core.resources import TenantUpdate

    chosen: Any = state
    rule: Any = approval
    with headrace.Client() as client:
        outcome = client.tenants.update(name, TenantUpdate(chosen, rate, burst, max_in_flight, why, rule))
        output.json(outcome) if json else output.done(client, f"tenant {name} changed", outcome.change)


@keys.command("create")
@output.guarded
def create_key(
    role: Annotated[
        str, typer.Option(help="viewer, developer, operator or admin.", callback=one_of(*ROLES))
    ] = "viewer",
    tenant: Tenant = None,
    label: Annotated[str, typer.Option(help="What it is for, for people.")] = "",
    account: Annotated[str, typer.Option(help="Person or service that holds it.")] = "",
    json: Json = False,
) -> None:
    """Create a key; its text is shown this once."""
    chosen: Any = role
    with headrace.Client() as client:
        outcome = client.keys.create(chosen, tenant, label, account)
        if json:
            return output.json(outcome)
        output.console.print(outcome.result.text)
        made = outcome.result.key
        output.done(client, f"{made.role} of {made.tenant}; keep it, it is not shown again", outcome.change)


@keys.command("list")
@output.guarded
def list_keys(tenant: Tenant = None, json: Json = False) -> None:
    """All keys, without their secrets."""
    with headrace.Client() as client:
        page = client.keys.list(tenant)
    if json:
        return output.json(page)
    rows = ((k.id, k.tenant, k.role, k.state, k.account, k.label, k.created_at, k.expires_at) for k in page.items)
    columns = ("KEY", "TENANT", "ROLE", "STATE", "ACCOUNT", "LABEL", "CREATED", "ENDS")
    output.table(columns, rows, "no keys")


@keys.command("rotate")
@output.guarded
def rotate_key(
    key: Annotated[str, typer.Argument(help="hr_<id>, without the secret.")],
    overlap: Annotated[float, typer.Option("--overlap-s", help="Seconds for which the old one stays good.")] = 86_400.0,
    why: Why = None,
    json: Json = False,
) -> None:
    """Create a key in another's place, which goes on for a while; its text is shown this once."""
    with headrace.Client() as client:
        outcome = client.keys.rotate(key, overlap, why)
        if json:
            return output.json(outcome)
        output.console.print(outcome.result.text)
        ends = next((k.expires_at for k in client.keys.list().items if k.id == key), None)
        text = f"in place of {key}, which ends {'now' if ends is None else f'at {ends}'}; it is not shown again"
        output.done(client, text, outcome.change)


@keys.command("revoke")
@output.guarded
def revoke_key(
    key: Annotated[str, typer.Argument(help="hr_<id>, without the secret.")], yes: Yes = False, json: Json = False
) -> None:
    """Make a key useless, at once and for good."""
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("this cannot be undone: give --yes", param_hint="--yes")
        typer.confirm(f"Revoke {key} for good?", abort=True)
    with headrace.Client() as client:
        outcome = client.keys.revoke(key)
        output.json(outcome) if json else output.done(client, f"{key} revoked", outcome.change)
