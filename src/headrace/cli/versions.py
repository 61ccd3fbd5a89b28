"""``headrace models approve | retire | validate | reference | alias | diff | delete``: what is decided of versions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json, Model, Reference, Tenant, Why, Yes, qualified
from headrace.core.names import parse_reference, read_version

if TYPE_CHECKING:
    from headrace.core.golden import GoldenResult
    from headrace.core.reference import Feature
    from headrace.core.resources import Lineage, ReferenceSummary, Version


def tell_tests(tests: list[GoldenResult]) -> None:
    """How signature tests went: each fault on a line."""
    failed = sum(bool(result.faults) for result in tests)
    if tests:
        output.console.print(f"signature tests: {len(tests) - failed} of {len(tests)} passed")
    for result in tests:
        for fault in result.faults:
            output.console.print(f"  {result.case}: {fault.message}", style="red")


def lineage_lines(lineage: Lineage) -> list[str]:
    """What is known of where a version comes from."""
    named = (("trained on", lineage.training_set), ("code", lineage.code), ("made from", lineage.parent or ""))
    lines = [f"{label} {text}" for label, text in named if text]
    if lineage.features:
        lines.append(f"needs {', '.join(lineage.features)}")
    return lines + [f"{name}={text}" for name, text in lineage.metadata.items()]


def told(reference: ReferenceSummary) -> str:
    """``train.parquet: 569 rows, 33 features``"""
    name = reference.sample.file_name or reference.sample.digest[:12]
    return f"{name}: {reference.rows} rows, {reference.features} features"


def approve(reference: Reference, why: Why = None, tenant: Tenant = None, json: Json = False) -> None:
    """Say that a version may take traffic."""
    with headrace.Client() as client:
        outcome = client.models.approve(qualified(reference, tenant), why)
        output.json(outcome) if json else output.done(client, f"{_name(outcome.result)} is approved", outcome.change)


def retire(reference: Reference, yes: Yes = False, why: Why = None, tenant: Tenant = None, json: Json = False) -> None:
    """Let nobody deploy a version any more, for good."""
    sure(f"Retire {reference} for good?", yes)
    with headrace.Client() as client:
        outcome = client.models.retire(qualified(reference, tenant), why)
        output.json(outcome) if json else output.done(client, f"{_name(outcome.result)} is retired", outcome.change)


def validate(
    reference: Reference,
    golden: Annotated[Path | None, typer.Option(help="Signature tests in place of those it has.")] = None,
    why: Why = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Run a version's signature tests; exit 1 where one fails."""
    with headrace.Client() as client:
        outcome = client.models.validate(qualified(reference, tenant), golden, why)
        found = outcome.result
        if json:
            output.json(outcome)
        else:
            tell_tests(found.tests)
            output.done(client, f"{_name(found)} is {found.state}", outcome.change)
    raise SystemExit(output.REFUSED if found.state == "registered" else 0)


def reference(
    reference: Reference,
    data: Annotated[Path | None, typer.Option(help="Parquet, CSV or NPZ of inputs; once per version.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the file that is no input.")] = None,
    why: Why = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Show a version's reference statistics; with --data, compute them first."""
    name = qualified(reference, tenant)
    with headrace.Client() as client:
        if data is not None:
            client.models.attach_reference(name, data, label, why)
        found = client.models.reference(name)
    if json:
        return output.json(found)
    statistics = found.statistics
    source = found.sample.file_name or found.sample.digest[:12]
    answered = f"answered {statistics.predicted} of them"
    output.console.print(f"{found.model}@{found.version}: {source}, {statistics.rows} rows; the model {answered}")
    features = [("input", f) for f in statistics.inputs] + [("output", f) for f in statistics.outputs]
    columns = ("", "FEATURE", "COUNT", "MISSING", "MIN", "MEAN", "STD", "MAX", "BINS")
    output.table(columns, ((kind, f.name, *_statistics(f)) for kind, f in features), "no features")


def _statistics(feature: Feature) -> tuple[object, ...]:
    numbers = (feature.minimum, feature.mean, feature.std, feature.maximum)
    bins = f"{len(feature.categories)} categories" if feature.kind == "categorical" else len(feature.counts)
    return (feature.count, feature.missing, *(None if n is None else f"{n:.6g}" for n in numbers), bins)


def delete(reference: Reference, yes: Yes = False, tenant: Tenant = None, json: Json = False) -> None:
    """Delete a retired version that nothing refers to."""
    sure(f"Delete {reference} for good?", yes)
    with headrace.Client() as client:
        outcome = client.models.delete(qualified(reference, tenant))
        output.json(outcome) if json else output.done(client, f"{_name(outcome.result)} is deleted", outcome.change)


def alias(
    model: Model,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="For example champion.")],
    version: Annotated[str | None, typer.Argument(help="Number, or another alias.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away.")] = False,
    why: Why = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Point an alias at a version: for all who name it, at once."""
    if (version is None) != remove:
        raise typer.BadParameter("give either a version or --remove", param_hint="VERSION")
    target = qualified(model, tenant)
    with headrace.Client() as client:
        if version is None:
            outcome = client.models.unalias(target, name)
        else:
            outcome = client.models.alias(target, name, read_version(version), why)
        if json:
            return output.json(outcome)
        at = outcome.result.aliases.get(name)
        text = f"{model}@{name} is no more" if at is None else f"{model}@{name} is {model}@{at}"
        output.done(client, text, outcome.change)


def diff(
    old: Reference,
    new: Annotated[str, typer.Argument(help="For example churn@5, or 5.")],
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """What differs between two versions of a model."""
    before = parse_reference(qualified(old, tenant))
    after = parse_reference(new if "@" in new else f"{before.model}@{new}")
    if before.version is None or after.version is None or after.model != before.model:
        raise typer.BadParameter("expected two versions of one model, as in churn@3 churn@4", param_hint="NEW")
    model = qualified(before.model, before.tenant)
    with headrace.Client() as client:
        found = client.models.diff(model, before.version, after.version)
    if json:
        return output.json(found)
    rows = ((d.field, d.old, d.new, None if d.change is None else f"{d.change:+g}") for d in found.differences)
    columns = ("FIELD", f"{found.model}@{found.old}", f"{found.model}@{found.new}", "CHANGE")
    output.table(columns, rows, "no differences")


def sure(question: str, yes: bool) -> None:
    """Ask before what cannot be undone. Raises typer.Abort, typer.BadParameter where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("this cannot be undone: give --yes", param_hint="--yes")
    typer.confirm(question, abort=True)


def _name(version: Version) -> str:
    return f"{version.model}@{version.version}"


def add_to(models: typer.Typer) -> None:
    """Add the commands."""
    for command in (approve, retire, validate, reference, delete, alias, diff):
        models.command()(output.guarded(command))
