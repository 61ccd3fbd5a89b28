"""``headrace models optimize`` and ``headrace jobs``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json, Reference, Tenant, Why, one_of, qualified
from headrace.core.optimization import TOLERANCE, CandidateName, Metric
from headrace.core.resources import JobState

if TYPE_CHECKING:
    from headrace.core.resources import Job

jobs = typer.Typer(help="Work that takes longer than a request.", no_args_is_help=True)
Label = Annotated[str | None, typer.Option(help="Column of the labels; without: agreement with the source.")]
Data = Annotated[Path, typer.Option(help="Held-out rows: Parquet, CSV or NPZ.")]
Calibration = Annotated[Path | None, typer.Option(help="Other rows, for static INT8.")]
Tolerance = Annotated[float, typer.Option(help="How much worse the metric may be.")]
MetricName = Annotated[str | None, typer.Option(help=", ".join(get_args(Metric)), callback=one_of(*get_args(Metric)))]
Pick = Annotated[
    str | None, typer.Option(help=", ".join(get_args(CandidateName)), callback=one_of(*get_args(CandidateName)))
]


def optimize(
    reference: Reference,
    data: Data,
    label: Label = None,
    calibration: Calibration = None,
    tolerance: Tolerance = TOLERANCE,
    metric: MetricName = None,
    judged: Annotated[str | None, typer.Option("--output", help="The output that is judged.")] = None,
    pick: Pick = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only queue it.")] = False,
    why: Why = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Make a faster or smaller version of an ONNX version; exit 1 where none passes the accuracy gate."""
    by: Any = metric
    wanted: Any = pick
    with headrace.Client() as client, spinner(json) as watch:
        job = client.models.optimize(
            qualified(reference, tenant),
            data,
            label=label,
            calibration=calibration,
            tolerance=tolerance,
            metric=by,
            output=judged,
            pick=wanted,
            reason=why,
            wait=not no_wait,
            watch=watch,
        )
    finish(job, json)


@contextmanager
def spinner(quiet: bool) -> Iterator[Callable[[Job], None]]:
    """Shows the step that a job is at, where somebody looks."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=quiet or not sys.stdout.isatty()) as shown:
        task = shown.add_task("queued", total=None)
        yield lambda job: shown.update(task, description=job.progress or job.state)


def finish(job: Job, json: bool) -> None:
    """Tell of a job, and end with 1 where it failed."""
    output.json(job) if json else tell(job)
    if job.state in ("failed", "cancelled"):
        raise typer.Exit(output.REFUSED)


def tell(job: Job) -> None:
    """A job, for people."""
    report = job.report
    if report is not None:
        output.console.print(f"{report.rows} rows; {report.batch} a run in {report.source_run_ms:g} ms before")
        rows: list[tuple[object, ...]] = [
            ("source", "", output.size(report.source_size_bytes), None, None, None),
        ]
        for one in report.candidates:
            found = one.comparison
            size = None if one.size_bytes is None else output.size(one.size_bytes)
            speed = None if one.speedup is None else f"{one.speedup:.2f}x"
            judged = None if found is None else f"{found.metric} {found.before:.4f} -> {found.after:.4f}"
            largest = None if one.max_abs is None else f"{one.max_abs:.3g}"
            rows.append((one.name, one.verdict, size, speed, judged, largest))
        output.table(("CANDIDATE", "VERDICT", "SIZE", "SPEED", "METRIC", "MAX DIFFERENCE"), rows, "")
    name = f"{job.model}@{job.version}"
    if job.state == "done" and report is not None:
        output.console.print(f"{job.model}@{job.made} is made from {name}: {report.reason}")
        output.console.print(f"next: headrace deploy {job.model}@{job.made}", style="dim")
    elif job.error is not None:
        output.console.print(f"{job.id} {job.state}, {name} stays as it is: {job.error}", style="red")
    else:
        step = f": {job.progress}" if job.progress else ""
        output.console.print(f"{job.id} {job.state}, optimises {name}{step}; headrace jobs show {job.id} --watch")


@jobs.command("list")
@output.guarded
def list_(
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    state: Annotated[
        str | None, typer.Option(help=", ".join(get_args(JobState)), callback=one_of(*get_args(JobState)))
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Jobs, oldest first."""
    with headrace.Client() as client:
        found = client.jobs.list(model, state, tenant)
    if json:
        return output.json(found)
    rows = (
        (
            j.id,
            f"{j.model}@{j.version}",
            j.kind,
            j.state,
            None if j.made is None else f"{j.model}@{j.made}",
            j.created_at,
        )
        for j in found.items
    )
    output.table(("JOB", "VERSION", "KIND", "STATE", "MADE", "CREATED"), rows, "no jobs")


@jobs.command("show")
@output.guarded
def show(
    id_: Annotated[str, typer.Argument(metavar="JOB")],
    watch: Annotated[bool, typer.Option("--watch", help="Until it ends.")] = False,
    json: Json = False,
) -> None:
    """A job and its report; exit 1 where it failed."""
    with headrace.Client() as client, spinner(json or not watch) as look:
        job = client.jobs.wait(id_, watch=look) if watch else client.jobs.show(id_)
    finish(job, json)


@jobs.command("cancel")
@output.guarded
def cancel(id_: Annotated[str, typer.Argument(metavar="JOB")], why: Why = None, json: Json = False) -> None:
    """End a job that has not ended."""
    with headrace.Client() as client:
        outcome = client.jobs.cancel(id_, why)
        output.json(outcome) if json else output.done(client, f"{id_} is cancelled", outcome.change)
