"""The command line: ``headrace NOUN VERB``. Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable."""

from __future__ import annotations

import csv
import io
import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from headrace import __version__
from headrace.cli import output
from headrace.client import calls
from headrace.client.client import Client
from headrace.core import resources as r
from headrace.core.config import Settings, load
from headrace.core.errors import InvalidInput
from headrace.deploy.node import run_node

app = typer.Typer(help="Headrace: an ML model-serving platform.", no_args_is_help=True, pretty_exceptions_enable=False)
models = typer.Typer(help="The model registry.", no_args_is_help=True)
traffic = typer.Typer(help="Which version answers whom.", no_args_is_help=True)
tenants = typer.Typer(help="Teams and their quotas.", no_args_is_help=True)
keys = typer.Typer(help="API keys.", no_args_is_help=True)
config = typer.Typer(help="Settings.", no_args_is_help=True)
for name, group in (
    ("models", models),
    ("traffic", traffic),
    ("tenants", tenants),
    ("keys", keys),
    ("config", config),
):
    app.add_typer(group, name=name)

Json = Annotated[bool, typer.Option("--json", help="The API's reply as JSON.")]
Why = Annotated[str | None, typer.Option("--why", help="Reason, kept in the audit.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Another tenant's (admins).")]


def qualified(model: str, tenant: str | None) -> str:
    """``tenant/model``, where a tenant is named."""
    return f"{tenant}/{model}" if tenant else model


def complete_model(incomplete: str) -> list[str]:
    """Models' names, for the shell; nothing when the platform does not answer."""
    try:
        with Client(timeout_s=1.0) as client:
            page: r.Page[r.Model] = client.call(calls.list_models())
    except Exception:  # completion must never disturb what a person types
        return []
    return [model.name for model in page.items if model.name.startswith(incomplete)]


Model = Annotated[str, typer.Argument(help="For example churn.", autocompletion=complete_model)]
Reference = Annotated[str, typer.Argument(help="For example churn@4.", autocompletion=complete_model)]


# ---------------------------------------------------------------------------------------------------- platform
@app.command()
@output.guarded
def up(
    data: Annotated[str | None, typer.Option(help="Folder that holds everything.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Inference over HTTP; 0: the system chooses.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Inference over gRPC; -1: off.")] = None,
    control_port: Annotated[int | None, typer.Option(help="Control-plane API and metrics.")] = None,
    routers: Annotated[int | None, typer.Option(help="Router processes sharing the HTTP port.")] = None,
    anonymous_tenant: Annotated[str | None, typer.Option(help="Tenant of requests without a key.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    file: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None,
) -> None:
    """Start the platform on this machine; Ctrl-C drains and stops it."""
    given = {
        "data": data,
        "host": host,
        "http_port": http_port,
        "grpc_port": grpc_port,
        "control_port": control_port,
        "routers": routers,
        "anonymous_tenant": anonymous_tenant,
        "log_level": log_level,
    }
    raise SystemExit(run_node(settings(file, given)))


def settings(file: Path | None, given: dict[str, Any] | None = None) -> Settings:
    """The settings of this process."""
    return load(file, os.environ, given).settings


@app.command()
@output.guarded
def status(json: Json = False) -> None:
    """Routers, models and deployments at a glance."""
    with Client() as client:
        found = client.status()
    if json:
        return output.json(found)
    output.console.print(f"headrace {found.version}, up {found.uptime_s:.0f} s, snapshot {found.epoch}")
    output.table(
        ("MODEL", "TRAFFIC", "REPLICAS", "REQUESTS/S", "ERRORS/S", "P50 MS", "P99 MS"),
        (
            (
                qualified(m.model, m.tenant),
                output.weights(m.serving),
                m.ready_replicas,
                f"{m.requests_per_s:.1f}",
                f"{m.errors_per_s:.1f}",
                "-" if m.p50_ms is None else f"{m.p50_ms:.2f}",
                "-" if m.p99_ms is None else f"{m.p99_ms:.2f}",
            )
            for m in found.models
        ),
        "no models yet: headrace models push NAME FILE",
    )


@app.command()
def version() -> None:
    """The version of this command."""
    output.console.print(f"headrace {__version__}")


@config.command("show")
@output.guarded
def config_show(
    file: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None, json: Json = False
) -> None:
    """Every setting and where it came from."""
    loaded = load(file, os.environ)
    if json:
        return output.json(loaded)
    rows = ((n, getattr(loaded.settings, n), loaded.origins[n]) for n in Settings.__struct_fields__)
    output.table(("SETTING", "VALUE", "FROM"), rows, "")


# ---------------------------------------------------------------------------------------------------- registry
@models.command("push")
@output.guarded
def models_push(
    model: Model,
    path: Annotated[Path, typer.Argument(help="Model file, or a folder with model.py.")],
    engine: Annotated[str | None, typer.Option(help="Guessed from the file's name.")] = None,
    outputs: Annotated[str | None, typer.Option(help="Outputs to compute, comma separated.")] = None,
    nan: Annotated[str | None, typer.Option(help="reject or allow.")] = None,
    batch_max: Annotated[int | None, typer.Option(help="Most rows in one run.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="The file may run code when loaded (a pickle).")] = False,
    metric: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER, repeatable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=TEXT, repeatable.")] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    tenant: TenantOption = None,
    json: Json = False,
) -> None:
    """Register a new version of a model."""
    chosen: Any = engine
    policy: Any = nan
    metrics = {n: float(v) for n, v in pairs(metric, "metric", number=True).items()}
    with (
        Client() as client,
        Progress(
            TextColumn("uploading"), BarColumn(), DownloadColumn(), transient=True, disable=not sys.stderr.isatty()
        ) as bar,
    ):
        task = bar.add_task("upload", total=None)
        outcome = client.push(
            qualified(model, tenant),
            path,
            engine=chosen,
            outputs=outputs.split(",") if outputs else None,
            nan=policy,
            batch_max=batch_max,
            trust=trust,
            metrics=metrics,
            tags=pairs(tag, "tag"),
            description=description,
            progress=lambda sent, total: bar.update(task, completed=sent, total=total),
        )
    if json:
        return output.json(outcome)
    made = outcome.result
    new = "" if outcome.change.id else " (known already)"
    output.console.print(f"{made.model}@{made.version} {made.engine}, {made.size_bytes} bytes{new}")
    for kind, specs in (("in ", made.signature.inputs), ("out", made.signature.outputs)):
        for spec in specs:
            output.console.print(f"  {kind} {spec.name} {spec.datatype} {list(spec.shape)}", markup=False)
    output.console.print(f"next: headrace deploy {made.model}@{made.version}", style="dim")


def pairs(items: list[str] | None, option: str, *, number: bool = False) -> dict[str, str]:
    """``NAME=VALUE`` options. Raises InvalidInput."""
    found = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals or not name or (number and not _is_number(value)):
            kind = "NUMBER" if number else "TEXT"
            raise InvalidInput(f"--{option}: {item!r}, expected NAME={kind}", field=option)
        found[name] = value
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@models.command("list")
@output.guarded
def models_list(
    q: Annotated[str | None, typer.Option("--search", help="In name and description.")] = None,
    tenant: TenantOption = None,
    json: Json = False,
) -> None:
    """All models."""
    with Client() as client:
        page: r.Page[r.Model] = client.call(calls.list_models(tenant, q))
    if json:
        return output.json(page)
    rows = ((m.name, m.tenant, m.latest, output.weights(m.serving), m.description) for m in page.items)
    output.table(
        ("MODEL", "TENANT", "LATEST", "TRAFFIC", "DESCRIPTION"), rows, "no models yet: headrace models push NAME FILE"
    )


@models.command("show")
@output.guarded
def models_show(model: Model, json: Json = False) -> None:
    """A model and its versions."""
    with Client() as client:
        found: r.Model = client.call(calls.show_model(model))
        versions: r.Page[r.Version] = client.call(calls.list_versions(model))
    if json:
        return output.json({"model": found, "versions": versions.items})
    output.console.print(f"{found.tenant}/{found.name}  traffic {output.weights(found.serving)}")
    rows = (
        (v.version, v.engine, v.digest[:12], v.size_bytes, " ".join(f"{n}={x:g}" for n, x in v.metrics.items()))
        for v in versions.items
    )
    output.table(("VERSION", "ENGINE", "SHA256", "BYTES", "METRICS"), rows, "no versions")


@models.command("grant")
@output.guarded
def models_grant(model: Model, to: Annotated[str, typer.Argument(help="Tenant.")], json: Json = False) -> None:
    """Let another tenant call a model."""
    with Client() as client:
        outcome: r.Outcome[r.Model] = client.call(calls.grant(model, to))
    output.json(outcome) if json else output.done(f"{to} may call {model}", outcome.change)


# ---------------------------------------------------------------------------------------------------- deployments
@app.command()
@output.guarded
def deploy(
    reference: Reference,
    replicas: Annotated[int, typer.Option(help="Processes.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the engine, per replica.")] = 1,
    share: Annotated[float | None, typer.Option("--traffic", help="Percent it takes once ready.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is ready.")] = True,
    why: Why = None,
    json: Json = False,
) -> None:
    """Run a version; the first of a model takes its traffic, a later one waits for `traffic set`."""
    with Client() as client, output.console.status(f"starting {reference}"):
        found = client.deploy(
            reference, replicas=replicas, threads=threads, traffic=share, reason=why, wait_s=60.0 if wait else None
        )
    if json:
        return output.json(found)
    name = f"{found.model}@{found.version}"
    output.console.print(f"{name} {found.state}: {found.ready} of {found.replicas} replicas")
    output.console.print(f"undo: headrace undeploy {name}", style="dim")


@app.command()
@output.guarded
def undeploy(reference: Reference, yes: Yes = False, json: Json = False) -> None:
    """Stop a version's replicas."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Stop {reference}?", abort=True)
    with Client() as client:
        outcome = client.undeploy(reference)
    output.json(outcome) if json else output.done(f"{reference} stops", outcome.change)


@app.command()
@output.guarded
def scale(reference: Reference, replicas: int, why: Why = None, json: Json = False) -> None:
    """Run another number of replicas."""
    with Client() as client:
        outcome = client.scale(reference, replicas, why)
    output.json(outcome) if json else output.done(f"{reference} goes to {replicas} replicas", outcome.change)


# ---------------------------------------------------------------------------------------------------- traffic
def tell_traffic(outcome: r.Outcome[r.Traffic], json: bool) -> None:
    """A traffic policy that has just changed."""
    if json:
        return output.json(outcome)
    output.done(f"{outcome.result.model}: {output.weights(outcome.result.weights)}", outcome.change)


@traffic.command("show")
@output.guarded
def traffic_show(model: Model, json: Json = False) -> None:
    """A model's split, pins, and what a rollback would do."""
    with Client() as client:
        policy: r.Traffic = client.call(calls.show_traffic(model))
    if json:
        return output.json(policy)
    output.console.print(f"{policy.model}: {output.weights(policy.weights)}")
    for tenant, pinned in policy.overrides.items():
        output.console.print(f"  {tenant} is pinned to {pinned}")
    if policy.previous is not None:
        output.console.print(f"rollback would give {output.weights(policy.previous)}", style="dim")


@traffic.command("set")
@output.guarded
def traffic_set(
    model: Model,
    split: Annotated[list[str], typer.Argument(help="VERSION=PERCENT ..., adding up to 100.")],
    why: Why = None,
    json: Json = False,
) -> None:
    """Split a model's traffic; units keep their version unless their own slot must move."""
    weights = {int(v) if v.isdigit() else 0: float(p) for v, p in pairs(split, "split", number=True).items()}
    with Client() as client:
        tell_traffic(client.set_traffic(model, weights, why), json)


@traffic.command("pin")
@output.guarded
def traffic_pin(
    model: Model,
    tenant: Annotated[str, typer.Argument(help="Who is pinned.")],
    number: Annotated[int, typer.Argument(metavar="VERSION")],
    why: Why = None,
    json: Json = False,
) -> None:
    """Send all of a tenant's requests to one version."""
    with Client() as client:
        tell_traffic(client.call(calls.pin(model, tenant, number, why)), json)


@traffic.command("unpin")
@output.guarded
def traffic_unpin(
    model: Model, tenant: Annotated[str, typer.Argument(help="Who is let go.")], json: Json = False
) -> None:
    """Let a tenant follow the split again."""
    with Client() as client:
        tell_traffic(client.call(calls.unpin(model, tenant)), json)


@traffic.command("history")
@output.guarded
def traffic_history(model: Model, json: Json = False) -> None:
    """Every routing change: who, when, from, to."""
    with Client() as client:
        page: r.Page[r.Change] = client.call(calls.traffic_history(model))
    show_changes(page, json)


def show_changes(page: r.Page[r.Change], json: bool) -> None:
    """Audit rows."""
    if json:
        return output.json(page)

    def brief(value: dict[str, Any] | None) -> str:
        return "-" if value is None else json_module.dumps(value, separators=(",", ":"))

    rows = ((c.id, c.at, c.actor, c.action, c.entity, brief(c.before), brief(c.after), c.reason) for c in page.items)
    output.table(("ID", "AT", "WHO", "WHAT", "ENTITY", "FROM", "TO", "WHY"), rows, "no changes")


@app.command()
@output.guarded
def rollback(model: Model, why: Why = None, json: Json = False) -> None:
    """Put back the split before the one in force; again: undo that."""
    with Client() as client:
        tell_traffic(client.rollback(model, why), json)


@app.command()
@output.guarded
def changes(
    model: Annotated[str | None, typer.Argument(help="Of one model.")] = None,
    limit: Annotated[int, typer.Option(help="Most rows.")] = 50,
    json: Json = False,
) -> None:
    """The audit: every change, newest first."""
    with Client() as client:
        page: r.Page[r.Change] = client.call(calls.list_changes(model, None, limit))
    show_changes(page, json)


# ---------------------------------------------------------------------------------------------------- predict
@app.command()
@output.guarded
def predict(
    reference: Reference,
    row: Annotated[str | None, typer.Option(help="One row: 1.5,2,3")] = None,
    file: Annotated[str | None, typer.Option("--input", help="Rows as .json or .csv; - for JSON from stdin.")] = None,
    unit: Annotated[str | None, typer.Option(help="User or session: always meets the same version.")] = None,
    json: Json = False,
) -> None:
    """Run a model on a row or a file of rows."""
    with Client() as client:
        result = client.predict(reference, read_rows(row, file), unit=unit)
    if json:
        found = {name: _plain(array) for name, array in result.outputs.items()}
        return output.json({"model": result.model, "version": result.version, "outputs": found})
    output.console.print(f"{result.model}@{result.version}")
    for name, array in result.outputs.items():
        output.console.print(f"  {name} {_plain(array)}", markup=False)


def _plain(array: Any) -> Any:
    """An array as lists of JSON's types."""
    if array.dtype.kind == "O":
        return [item.decode("utf-8", "replace") for item in array.reshape(-1)]
    return array.tolist()


def read_rows(row: str | None, file: str | None) -> Any:
    """Rows from the command line. Raises InvalidInput."""
    if (row is None) == (file is None):
        raise InvalidInput("give either --row or --input", field="row")
    try:
        if row is not None:
            return [[float(value) for value in row.split(",")]]
        assert file is not None
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        if file.endswith(".csv"):
            lines = [line for line in csv.reader(io.StringIO(text)) if line]
            return [[float(value) for value in line] for line in lines if _is_number(line[0])]
        return json_module.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"input: {error}", field="input") from None


# ---------------------------------------------------------------------------------------------------- accounts
@tenants.command("list")
@output.guarded
def tenants_list(json: Json = False) -> None:
    """All tenants."""
    with Client() as client:
        page: r.Page[r.Tenant] = client.call(calls.list_tenants())
    if json:
        return output.json(page)
    rows = (
        (t.name, t.state, f"{t.quota.rate_per_s:g}", f"{t.quota.burst:g}", t.quota.max_in_flight) for t in page.items
    )
    output.table(("TENANT", "STATE", "RATE/S", "BURST", "IN FLIGHT"), rows, "no tenants")


@tenants.command("create")
@output.guarded
def tenants_create(
    name: str,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 10_000.0,
    burst: Annotated[float, typer.Option(help="Requests above it at once.")] = 2_000.0,
    max_in_flight: Annotated[int, typer.Option(help="Requests at the same time.")] = 4096,
    json: Json = False,
) -> None:
    """Create a tenant."""
    with Client() as client:
        quota = r.Quota(rate, burst, max_in_flight)
        outcome: r.Outcome[r.Tenant] = client.call(calls.create_tenant(name, quota))
    output.json(outcome) if json else output.done(f"tenant {name} created", outcome.change)


@tenants.command("update")
@output.guarded
def tenants_update(
    name: str,
    rate: Annotated[float | None, typer.Option(help="Requests a second.")] = None,
    burst: Annotated[float | None, typer.Option(help="Requests above it at once.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Requests at the same time.")] = None,
    state: Annotated[str | None, typer.Option(help="active or suspended.")] = None,
    why: Why = None,
    json: Json = False,
) -> None:
    """Change a tenant's quota, or suspend it."""
    chosen: Any = state
    change = r.TenantUpdate(chosen, rate, burst, max_in_flight, why)
    with Client() as client:
        outcome: r.Outcome[r.Tenant] = client.call(calls.update_tenant(name, change))
    output.json(outcome) if json else output.done(f"tenant {name} changed", outcome.change)


@keys.command("create")
@output.guarded
def keys_create(
    role: Annotated[str, typer.Option(help="viewer, developer, operator or admin.")] = "viewer",
    tenant: TenantOption = None,
    label: Annotated[str, typer.Option(help="Whose it is, for people.")] = "",
    json: Json = False,
) -> None:
    """Create a key; its text is shown this once."""
    chosen: Any = role
    with Client() as client:
        outcome: r.Outcome[r.KeyCreated] = client.call(calls.create_key(chosen, tenant, label))
    if json:
        return output.json(outcome)
    output.console.print(outcome.result.text)
    made = outcome.result.key
    output.done(f"{made.role} of {made.tenant}; keep it, it is not shown again", outcome.change)


@keys.command("list")
@output.guarded
def keys_list(tenant: TenantOption = None, json: Json = False) -> None:
    """All keys, without their secrets."""
    with Client() as client:
        page: r.Page[r.Key] = client.call(calls.list_keys(tenant))
    if json:
        return output.json(page)
    rows = ((k.id, k.tenant, k.role, k.state, k.label, k.created_at) for k in page.items)
    output.table(("KEY", "TENANT", "ROLE", "STATE", "LABEL", "CREATED"), rows, "no keys")


@keys.command("revoke")
@output.guarded
def keys_revoke(key: str, yes: Yes = False, json: Json = False) -> None:
    """Make a key useless, at once."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Revoke {key}?", abort=True)
    with Client() as client:
        outcome: r.Outcome[r.Key] = client.call(calls.revoke_key(key))
    output.json(outcome) if json else output.done(f"{key} revoked", outcome.change)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
