"""``headrace plan``, ``apply`` and ``export``: the platform as files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.status import Status

import headrace
from headrace.cli import output
from headrace.cli.options import Json, Tenant, Why, Yes
from headrace.core.errors import Unreachable

if TYPE_CHECKING:
    from headrace.client.fleet.execute import Event
    from headrace.client.fleet.flows import Applied
    from headrace.client.fleet.plan import Plan, Step

DIFFERS = 4
"""Exit code of ``plan --check`` where something is to be done."""
SIGNS = {"create": ("+", "green"), "change": ("~", "yellow"), "remove": ("-", "red")}
Files = Annotated[list[Path], typer.Option("--file", "-f", help="Fleet file, or a folder of them; repeatable.")]
Prune = Annotated[bool, typer.Option("--prune", help="Remove what is there beside the files.")]


def plan(
    file: Files,
    prune: Prune = False,
    check: Annotated[bool, typer.Option("--check", help="Exit code 4 where something is to be done.")] = False,
    json: Json = False,
) -> None:
    """What has to be done so that the platform is as fleet files say; nothing is changed."""
    with headrace.Client() as client:
        found = client.fleet.plan(file, prune=prune)
    output.json(found) if json else show(found)
    if found.faults:
        raise SystemExit(output.REFUSED)
    if check and found.steps:
        raise SystemExit(DIFFERS)


def apply(
    file: Files,
    prune: Prune = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until what is deployed is ready.")] = True,
    wait_s: Annotated[float, typer.Option(help="How long at most each time, in seconds.")] = 300.0,
    why: Why = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Make the platform as fleet files say: shows the plan, asks, and carries it out."""
    with headrace.Client() as client:
        found = client.fleet.plan(file, prune=prune)
        if not json:
            show(found)
        if found.faults:
            if json:
                output.json(found)
            raise SystemExit(output.REFUSED)
        if found.steps and not yes:
            typer.confirm("Apply?", abort=True, err=json)
        with Stages(quiet=json) as watch:
            result = client.fleet.apply(found, reason=why, wait=wait, wait_s=wait_s, watch=watch)
    output.json(result) if json else _told(result)
    if result.refused is not None:
        unreachable = result.refused.code == Unreachable.code
        raise SystemExit(output.UNREACHABLE if unreachable else output.REFUSED)


def export(
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Write it there, not to standard output.")] = None,
    tenant: Tenant = None,
) -> None:
    """The platform as a fleet file: tenants, models, versions, deployments, traffic; no keys."""
    with headrace.Client() as client:
        text = client.fleet.export(tenant)
    if file is None:
        sys.stdout.write(text)
        return
    made = file.with_name(f".{file.name}.part")
    made.write_text(text)
    os.replace(made, file)


# ------------------------------------------------------------------------------------------------ how it is told
def show(found: Plan) -> None:
    """A plan, for people: each step, what it changes, and what it comes after."""
    for step in found.steps:
        sign, color = SIGNS[step.action]
        output.console.print(f"{sign} {step.action} {step.name}", style=color)
        for change in step.changes:
            output.console.print(f"    {change.field}: {_change(step, change.old, change.new)}")
        if step.drift is not None:
            by = f"{step.drift.action} by {step.drift.by} at {step.drift.at}"
            reason = f", {step.drift.reason!r}" if step.drift.reason else ""
            output.console.print(f"    drift: {by}{reason}", style="magenta")
        for before in step.after:
            output.console.print(f"    after {before.step}: {before.why}", style="dim")
    for note in found.notes:
        output.console.print(f"  {note.name}: {note.message}", style="dim")
    for fault in found.faults:
        output.console.print(f"! {fault.name}: {fault.message}", style="red")
        if fault.hint:
            output.console.print(f"    {fault.hint}")
    output.console.print(_summary(found))


def _summary(found: Plan) -> str:
    if not found.steps and not found.faults:
        return "no changes"
    actions = [step.action for step in found.steps]
    counts = [f"{actions.count(action)} to {action}" for action in SIGNS if action in actions]
    drift = sum(step.drift is not None for step in found.steps)
    return ", ".join(
        counts
        + ([f"{drift} changed by hand"] if drift else [])
        + ([f"{len(found.faults)} that cannot be"] if found.faults else [])
    )


def _change(step: Step, old: Any, new: Any) -> str:
    return _text(new) if step.action == "create" else f"{_text(old)} -> {_text(new)}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_text(one)}" for name, one in value.items()) + "}"
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}..."
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _told(result: Applied) -> None:
    for step in result.waiting:
        output.console.print(f"waits: {step.name}: what it needs is not ready; apply again", style="yellow")
    if result.refused is None:
        output.console.print(f"{len(result.done)} done" + (f", {len(result.waiting)} wait" if result.waiting else ""))
        return
    refused = result.refused
    print(f"error: {refused.step}: {refused.message}", file=sys.stderr)
    if refused.hint:
        print(f"hint: {refused.hint}", file=sys.stderr)
    for step in result.left:
        output.console.print(f"not done: {step.action} {step.name}")
    output.console.print(f"{len(result.done)} done, {len(result.left) + 1} not; apply again goes on from here")


class Stages:
    """Shows how far an apply is: a spinner in a terminal, and a line for each step that is done."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._status: Status | None = None

    def __enter__(self) -> Stages:
        if not self._quiet and sys.stdout.isatty():
            self._status = output.console.status("")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, event: Event) -> None:
        """Look at an event."""
        if event.stage == "done" and not self._quiet:
            output.console.print(f"done: {event.step.action} {event.step.name}", style="green")
        elif self._status is not None:
            self._status.update(f"{event.step.action} {event.step.name} {event.detail}")


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (plan, apply, export):
        app.command()(output.guarded(command))
