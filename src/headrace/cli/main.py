"""The command line: ``headrace NOUN VERB``. Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable.

Commands reach the client as ``headrace.Client``, which imports it when first used: ``--help`` and completion are quick.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

import headrace
from headrace.cli import (
    accounts,
    artifacts,
    audit,
    database,
    deployments,
    fleet,
    jobs,
    output,
    placement,
    predict,
    quarantine,
    registry,
    replicas,
    traffic,
)
from headrace.cli.options import Json
from headrace.core.config import Settings, load, shown

if TYPE_CHECKING:
    from headrace.core.resources import Deployment, PackStatus, Status

app = typer.Typer(
    help="Headrace: an ML model-serving platform.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config = typer.Typer(help="Settings.", no_args_is_help=True)
SettingsFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
WATCH_S = 1.0


@app.command()
@output.guarded
def up(
    data: Annotated[str | None, typer.Option(help="Folder that holds everything.")] = None,
    database: Annotated[str | None, typer.Option(help="PostgreSQL URL; without one, SQLite in the folder.")] = None,
    control_planes: Annotated[int | None, typer.Option(help="Control planes, of which one leads (PostgreSQL).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Inference over HTTP; 0: the system chooses.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Inference over gRPC; 0: the system chooses; -1: off.")] = None,
    control_port: Annotated[int | None, typer.Option(help="Control-plane API and metrics.")] = None,
    routers: Annotated[int | None, typer.Option(help="Router processes sharing the HTTP port.")] = None,
    anonymous_tenant: Annotated[str | None, typer.Option(help="Tenant of requests without a key.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Longest that a request may take.")] = None,
    idle_timeout_s: Annotated[float | None, typer.Option(help="Idle connections are closed after it.")] = None,
    header_timeout_s: Annotated[float | None, typer.Option(help="Slow requests get 408 after it.")] = None,
    max_connections: Annotated[int | None, typer.Option(help="Connections per router process.")] = None,
    artifacts: Annotated[str | None, typer.Option(help="s3://BUCKET/PREFIX; default: the data folder.")] = None,
    artifact_max_bytes: Annotated[int | None, typer.Option(help="Largest artifact.")] = None,
    artifact_grace_s: Annotated[float | None, typer.Option(help="How long unneeded artifacts are kept.")] = None,
    cache_max_bytes: Annotated[int | None, typer.Option(help="Artifacts kept here of a store elsewhere.")] = None,
    s3_endpoint: Annotated[str | None, typer.Option(help="URL of the storage; default: Amazon's.")] = None,
    s3_region: Annotated[str | None, typer.Option(help="Its region; default: us-east-1.")] = None,
    s3_access_key: Annotated[str | None, typer.Option(help="Reference: env:NAME or file:/PATH.")] = None,
    s3_secret_key: Annotated[str | None, typer.Option(help="Reference, never the key itself.")] = None,
    s3_session_token: Annotated[str | None, typer.Option(help="Reference.")] = None,
    forms_max_bytes: Annotated[int | None, typer.Option(help="Serving forms of large ONNX models; 0: none.")] = None,
    fleet: Annotated[str | None, typer.Option(help="What runs the replicas: local, or ray.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="HOST:PORT of Ray's head; default: one is started.")] = None,
    ray_port: Annotated[int | None, typer.Option(help="Of the head that is started here.")] = None,
    ray_folder: Annotated[str | None, typer.Option(help="Folder for logs and cache on Ray's nodes.")] = None,
    fleet_host: Annotated[str | None, typer.Option(help="Our address as the fleet's other nodes reach it.")] = None,
    fleet_port: Annotated[int | None, typer.Option(help="On which replicas of other nodes report.")] = None,
    unlinked_s: Annotated[float | None, typer.Option(help="Replicas without routers leave after it.")] = None,
    replicas_max: Annotated[int | None, typer.Option(help="Replicas that all deployments together may want.")] = None,
    zygotes: Annotated[str | None, typer.Option(help="Runtimes to fork replicas from, from the start; off.")] = None,
    idle_processes: Annotated[int | None, typer.Option(help="Processes that stand ready, per runtime.")] = None,
    shared_replicas: Annotated[int | None, typer.Option(help="Processes that shared deployments have.")] = None,
    shared_memory_mb: Annotated[int | None, typer.Option(help="Most memory of each of them, MiB.")] = None,
    shared_model_memory_mb: Annotated[int | None, typer.Option(help="Most memory of a model in them, MiB.")] = None,
    promote_per_s: Annotated[float | None, typer.Option(help="From this load on, `auto` is dedicated.")] = None,
    promote_after_s: Annotated[float | None, typer.Option(help="That load must have lasted so long.")] = None,
    demote_per_s: Annotated[float | None, typer.Option(help="Up to this load, `auto` is shared.")] = None,
    demote_after_s: Annotated[float | None, typer.Option(help="That load must have lasted so long.")] = None,
    tiers: Annotated[str | None, typer.Option(help="JSON: prices and speeds of hardware.")] = None,
    devices: Annotated[str | None, typer.Option(help="JSON: what this node has; default: what is found.")] = None,
    rebalance_s: Annotated[float | None, typer.Option(help="How often better placements are looked for.")] = None,
    drain_s: Annotated[float | None, typer.Option(help="How long replicas and routers finish what they have.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
    file: SettingsFile = None,
) -> None:
    """Start the platform on this machine; Ctrl-C drains and stops it.

    With --with-parent (for `headrace.serve`) it also stops at the end of its standard input, however its parent ended.
    """
    given = {name: value for name, value in locals().items() if name not in ("file", "with_parent")}
    loaded = load(file, os.environ, given)
    from headrace.deploy.node import run_node  # the platform itself, which no other command needs

    raise SystemExit(run_node(loaded.settings, with_parent))


@app.command()
@output.guarded
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Again each second, until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Routers, models and deployments at a glance."""
    with headrace.Client() as client:
        while True:
            found = client.status()
            if watch and not json:
                output.console.clear()
            output.json(found) if json else show_status(found)
            if not watch:
                return
            time.sleep(WATCH_S)


def ready_text(found: Deployment) -> str:
    """How many of its replicas are ready; of a shared one whether it is in memory."""
    if found.placed == "shared":
        return "resident" if found.resident else "cold"
    return f"{found.ready}/{found.replicas}"


def show_packs(packs: list[PackStatus]) -> None:
    """The shared processes, for people."""
    output.console.print()
    rows = (
        (
            p.id,
            p.state,
            f"{p.resident}/{p.versions}",
            f"{output.size(p.rss_bytes)} of {output.size(p.limit_bytes)}",
            p.loads,
            p.evictions,
            f"{100 * p.hits / max(p.hits + p.misses, 1):.1f} %",
        )
        for p in packs
    )
    output.table(("SHARED PROCESS", "STATE", "RESIDENT", "MEMORY", "LOADS", "EVICTIONS", "HITS"), rows, "")


def show_status(found: Status) -> None:
    """The platform at a glance, for people."""
    connected = sum(router.connected for router in found.routers)
    output.console.print(
        f"headrace {found.version}, up {found.uptime_s:.0f} s, {connected} of {len(found.routers)} routers connected"
    )
    output.console.print(f"inference: HTTP {found.url}, gRPC {found.grpc_url or 'off'}")
    if found.fleet.kind != "local":
        nodes = len({device.id.partition("/")[0] for device in found.fleet.devices})
        holding = f"; holding: {found.fleet.holding}" if found.fleet.holding else ""
        output.console.print(f"fleet: {found.fleet.kind}, {nodes} {'node' if nodes == 1 else 'nodes'}{holding}")
    rows = (
        (
            f"{m.tenant}/{m.model}",
            output.weights(m.serving),
            m.ready_replicas,
            f"{m.requests_per_s:.1f}",
            f"{m.errors_per_s:.1f}",
            None if m.p50_ms is None else f"{m.p50_ms:.2f}",
            None if m.p99_ms is None else f"{m.p99_ms:.2f}",
        )
        for m in found.models
    )
    empty = "no models yet: headrace models push NAME FILE"
    output.table(("MODEL", "TRAFFIC", "REPLICAS", "REQUESTS/S", "ERRORS/S", "P50 MS", "P99 MS"), rows, empty)
    if found.deployments:
        output.console.print()
        deployed = (
            (
                f"{d.tenant}/{d.model}@{d.version}",
                d.state,
                ready_text(d),
                f"{d.traffic_percent:g} %",
                d.detail or d.placed_why,
            )
            for d in found.deployments
        )
        output.table(("DEPLOYMENT", "STATE", "READY", "TRAFFIC", "DETAIL"), deployed, "")
    if found.packs:
        show_packs(found.packs)


@app.command()
def version() -> None:
    """The version of this command."""
    output.console.print(f"headrace {headrace.__version__}")


@config.command("show")
@output.guarded
def config_show(file: SettingsFile = None, json: Json = False) -> None:
    """Every setting and where it came from."""
    loaded = shown(load(file, os.environ))
    if json:
        return output.json(loaded)
    rows = ((n, told(getattr(loaded.settings, n)), loaded.origins[n]) for n in Settings.__struct_fields__)
    output.table(("SETTING", "VALUE", "FROM"), rows, "")


def told(value: object) -> object:
    """A setting's value in a cell: lists and tables as the JSON in which they are given."""
    return msgspec.json.encode(value).decode() if isinstance(value, dict | tuple) else value


app.add_typer(registry.models, name="models")
app.add_typer(artifacts.artifacts, name="artifacts")
app.add_typer(jobs.jobs, name="jobs")
deployments.add_to(app)
placement.add_to(app)
traffic.add_to(app)
fleet.add_to(app)
predict.add_to(app)
app.command("replicas")(replicas.replicas)
app.add_typer(quarantine.quarantine, name="quarantine")
app.add_typer(accounts.tenants, name="tenants")
app.add_typer(accounts.keys, name="keys")
app.add_typer(audit.audit, name="audit")
app.add_typer(config, name="config")
app.add_typer(database.db, name="db")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
