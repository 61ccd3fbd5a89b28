"""``headrace deploy``, ``undeploy`` and ``scale``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.status import Status

import headrace
from headrace.cli import output
from headrace.cli.options import Force, Json, Reference, Tenant, Why, Yes, qualified
from headrace.core.errors import InvalidInput
from headrace.core.resources import DeploymentMode

if TYPE_CHECKING:
    from headrace.core.resources import Deployment


class Stages:
    """Shows how far a deployment is: a spinner in a terminal, else a line per stage."""

    def __init__(self, status: Status | None) -> None:
        self._status = status
        self._last = ""

    def __call__(self, found: Deployment) -> None:
        """Look at the deployment."""
        states = [replica.state for replica in found.instances]
        stages = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or found.state
        text = f"{found.model}@{found.version}: {stages}"
        if " " in found.detail:  # more than a stage's name
            text += f" ({found.detail})"
        if text == self._last:
            return
        self._last = text
        if self._status is not None:
            self._status.update(text)
        else:
            print(text, file=sys.stderr)


def deploy(
    reference: Reference,
    replicas: Annotated[int, typer.Option(help="Processes.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the engine, per replica.")] = 1,
    memory_mb: Annotated[int | None, typer.Option(help="Most memory per replica, MiB.")] = None,
    mode: Annotated[str, typer.Option(help="dedicated, shared or auto: processes of its own, or not.")] = "dedicated",
    shared: Annotated[bool, typer.Option("--shared", help="The same as --mode shared.")] = False,
    tier: Annotated[list[str] | None, typer.Option(help="Hardware; several: any of them.")] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Also on devices that may be taken away.")] = False,
    compute: Annotated[float | None, typer.Option(help="Reserved per replica: cores, or T4s.")] = None,
    share: Annotated[float | None, typer.Option("--traffic", help="Percent it takes once ready.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is ready.")] = True,
    wait_s: Annotated[float, typer.Option(help="How long at most, in seconds.")] = 60.0,
    why: Why = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Run a version; the first of a model takes its traffic, a later one waits for `traffic set`."""
    name = qualified(reference, tenant)
    how = checked_mode("shared" if shared and mode == "dedicated" else mode, shared)
    spinner = output.console.status(f"{name}: requested") if not json and sys.stdout.isatty() else None
    with headrace.Client() as client:
        if spinner is not None:
            spinner.start()
        try:
            outcome = client.deployments.create(
                name,
                replicas=replicas,
                threads=threads,
                traffic=share,
                memory_mb=memory_mb,
                mode=how,
                tiers=tier or (),
                spot=spot,
                compute=compute,
                reason=why,
                wait=wait,
                wait_s=wait_s,
                watch=None if json else Stages(spinner),
            )
        finally:
            if spinner is not None:
                spinner.stop()
        if json:
            return output.json(outcome)
        found = outcome.result
        replicas_text = f"{found.ready} of {found.replicas} replicas" if found.placed != "shared" else "shared"
        text = (
            f"{found.model}@{found.version} {found.state}: {replicas_text}, {found.traffic_percent:g} % of the traffic"
        )
        output.done(client, text, outcome.change)


def checked_mode(mode: str, shared: bool) -> DeploymentMode:
    """Raises InvalidInput."""
    if shared and mode != "shared":
        raise InvalidInput(f"mode: {mode!r} and --shared contradict each other", field="mode")
    if mode not in get_args(DeploymentMode):
        raise InvalidInput(f"mode: {mode!r}, expected {', '.join(get_args(DeploymentMode))}", field="mode")
    return cast(DeploymentMode, mode)


def undeploy(
    reference: Reference, force: Force = False, yes: Yes = False, tenant: Tenant = None, json: Json = False
) -> None:
    """Stop a version's replicas."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Stop {reference}?", abort=True)
    with headrace.Client() as client:
        outcome = client.deployments.remove(qualified(reference, tenant), force)
        output.json(outcome) if json else output.done(client, f"{reference} drains and stops", outcome.change)


def scale(
    reference: Reference,
    replicas: Annotated[int, typer.Argument(help="Processes.")],
    force: Force = False,
    why: Why = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Run another number of replicas."""
    with headrace.Client() as client:
        outcome = client.deployments.scale(qualified(reference, tenant), replicas, why, force)
        output.json(outcome) if json else output.done(
            client, f"{reference} goes to {replicas} replicas", outcome.change
        )


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (deploy, undeploy, scale):
        app.command()(output.guarded(command))
