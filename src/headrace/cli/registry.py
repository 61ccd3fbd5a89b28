"""``headrace models``: the model registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

import headrace
from headrace.cli import imports, jobs, output, versions
from headrace.cli.options import Json, Model, Tenant, numbers, one_of, pairs, qualified
from headrace.core.resources import Engine, Lineage

models = typer.Typer(help="The model registry.", no_args_is_help=True)


@models.command("push")
@output.guarded
def push(
    model: Model,
    path: Annotated[Path, typer.Argument(help="Model file, pipeline.toml, or a folder with it or with model.py.")],
    engine: Annotated[
        str | None, typer.Option(help="Guessed from the file's name.", callback=one_of(*get_args(Engine)))
    ] = None,
    outputs: Annotated[str | None, typer.Option(help="Outputs to compute, comma separated.")] = None,
    nan: Annotated[str | None, typer.Option(help="reject or allow.", callback=one_of("reject", "allow"))] = None,
    batch_max: Annotated[int | None, typer.Option(help="Most rows in one run.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="The file may run code when loaded (a pickle).")] = False,
    run_limit_s: Annotated[float | None, typer.Option(help="A run that takes longer is killed.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER, repeatable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=TEXT, repeatable.")] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    training_set: Annotated[str, typer.Option(help="Reference of the data it was trained on.")] = "",
    code: Annotated[str, typer.Option(help="Revision of the code that trained it.")] = "",
    parent: Annotated[str | None, typer.Option(help="Version that it was made from: 3, or base@3.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Required feature, NAME@VERSION, repeatable.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="NAME=TEXT of its lineage, repeatable.")] = None,
    golden: Annotated[Path | None, typer.Option(help="JSON file of signature tests.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Parquet, CSV or NPZ of inputs, for drift.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of that file, or of --data, that is no input.")] = None,
    optimize: Annotated[bool, typer.Option("--optimize", help="Optimise it then; needs --data.")] = False,
    data: Annotated[Path | None, typer.Option(help="Held-out rows for --optimize.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Send the file though the platform has it.")] = False,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Register a new version of a model. An upload that was cut off goes on where it stopped."""
    if optimize != (data is not None):
        raise typer.BadParameter("--optimize and --data go together", param_hint="--data")
    chosen: Any = engine
    missing: Any = nan
    with headrace.Client() as client:
        with output.upload_bar(json) as progress:
            outcome = client.models.push(
                qualified(model, tenant),
                path,
                engine=chosen,
                outputs=outputs.split(",") if outputs else None,
                nan=missing,
                batch_max=batch_max,
                trust=trust,
                run_limit_s=run_limit_s,
                metrics=numbers(metric, "--metric"),
                tags=pairs(tag, "--tag"),
                description=description,
                lineage=Lineage(training_set, code, parent, feature or [], pairs(metadata, "--metadata")),
                golden=golden,
                reference=reference,
                label=label if reference is not None else None,
                progress=progress,
                force=force,
            )
        made = outcome.result
        job = None
        if data is not None and made.state != "registered":
            with jobs.spinner(json) as watch:
                name = qualified(f"{made.model}@{made.version}", tenant)
                job = client.models.optimize(name, data, label=label, watch=watch)
        if json:
            output.json(outcome if job is None else {"push": outcome, "job": job})
            raise SystemExit(output.REFUSED if job is not None and job.state != "done" else 0)
        name = qualified(f"{made.model}@{made.version}", tenant)
        output.console.print(f"{name}  {made.engine}, {output.size(made.size_bytes)}")
        for kind, specs in (("takes", made.signature.inputs), ("gives", made.signature.outputs)):
            for spec in specs:
                output.console.print(f"  {kind} {spec.name} {spec.datatype} {list(spec.shape)}")
        if made.parts:
            output.console.print(f"  runs {', '.join(made.parts)}")
        if made.reference is not None:
            output.console.print(f"  reference {versions.told(made.reference)}")
        versions.tell_tests(made.tests)
        if made.state == "registered":
            output.console.print(f"{name} may not take traffic until they pass", style="yellow")
            raise SystemExit(output.REFUSED)
        if job is not None:
            jobs.finish(job, False)
        else:
            output.console.print(f"next: headrace deploy {name}", style="dim")


imports.add_to(models)


@models.command("list")
@output.guarded
def list_(
    search: Annotated[str | None, typer.Option(help="Terms that must all be found.")] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """All models."""
    with headrace.Client() as client:
        found = client.models.list(tenant, search)
    if json:
        return output.json(found)
    rows = ((m.name, m.tenant, m.latest, output.weights(m.serving), m.description) for m in found)
    empty = "no models yet: headrace models push NAME FILE"
    output.table(("MODEL", "TENANT", "LATEST", "TRAFFIC", "DESCRIPTION"), rows, empty)


@models.command("show")
@output.guarded
def show(model: Model, tenant: Tenant = None, json: Json = False) -> None:
    """A model and its versions."""
    name = qualified(model, tenant)
    with headrace.Client() as client:
        found = client.models.show(name)
        listed = client.models.versions(name).items
    if json:
        return output.json({"model": found, "versions": listed})
    output.console.print(f"{found.tenant}/{found.name}  traffic {output.weights(found.serving)}")
    for label, text in (("description", found.description), ("granted to", ", ".join(found.grants))):
        if text:
            output.console.print(f"{label}: {text}")
    rows = (
        (
            v.version,
            v.state,
            ", ".join(v.aliases),
            v.engine,
            v.digest[:12],
            output.size(v.size_bytes),
            _listed(v.metrics),
            _listed(v.tags),
            v.created_at,
        )
        for v in listed
    )
    columns = ("VERSION", "STATE", "ALIASES", "ENGINE", "SHA256", "SIZE", "METRICS", "TAGS", "CREATED")
    output.table(columns, rows, "no versions")
    for v in listed:
        for label, names in (("runs", v.parts), ("is run by", v.used_by)):
            if names:
                output.console.print(f"{v.model}@{v.version} {label} {', '.join(names)}")
        if v.reference is not None:
            output.console.print(f"{v.version}: reference {versions.told(v.reference)}", style="dim")
        if lines := versions.lineage_lines(v.lineage):
            output.console.print(f"{v.version}: {'; '.join(lines)}", style="dim")


def _listed(values: Any) -> str:
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )


@models.command("grant")
@output.guarded
def grant(
    model: Model, to: Annotated[str, typer.Argument(help="Tenant.")], tenant: Tenant = None, json: Json = False
) -> None:
    """Let another tenant call a model."""
    with headrace.Client() as client:
        outcome = client.models.grant(qualified(model, tenant), to)
        output.json(outcome) if json else output.done(client, f"{to} may call {model}", outcome.change)


@models.command("revoke")
@output.guarded
def revoke(
    model: Model, to: Annotated[str, typer.Argument(help="Tenant.")], tenant: Tenant = None, json: Json = False
) -> None:
    """Take a grant back."""
    with headrace.Client() as client:
        outcome = client.models.revoke(qualified(model, tenant), to)
        output.json(outcome) if json else output.done(client, f"{to} may call {model} no more", outcome.change)


versions.add_to(models)
models.command()(output.guarded(jobs.optimize))
