"""The control-plane process: ``python -m headrace.controlplane.main``, its ControlSpec on standard input."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path

import msgspec
import uvicorn
import uvloop

from headrace.controlplane import accounts, deploying, quarantine, views
from headrace.controlplane.accounts import bootstrap
from headrace.controlplane.app import create_app
from headrace.controlplane.artifacts import Artifacts, Near
from headrace.controlplane.leadership import Forwarding, Leadership
from headrace.controlplane.link import Hub
from headrace.controlplane.loop import Manager
from headrace.controlplane.metrics import Metrics
from headrace.controlplane.moves import Moves
from headrace.controlplane.optimising import Optimisations
from headrace.controlplane.placing import Placing
from headrace.controlplane.platform import Platform, Principal, Request
from headrace.controlplane.publisher import Publisher
from headrace.controlplane.rebalancing import Rebalancing
from headrace.controlplane.store import Store, open_store
from headrace.core.errors import HeadraceError, NotFound
from headrace.core.process import Events, watch_stop
from headrace.core.report import Command, CommandReply, ReplicaReport, RouterReport
from headrace.core.resources import DeploymentCreate, DeviceStatus, FleetStatus, Role
from headrace.core.secret import variables
from headrace.core.specs import ControlSpec, ProcessEvent
from headrace.deploy import store as deploy_store
from headrace.deploy.local import LocalFleet
from headrace.deploy.pulls import Pulls
from headrace.deploy.ray.fleet import RayFleet
from headrace.deploy.starts import StartTimes
from headrace.registry.cache import Cache
from headrace.registry.examiner import Examiner
from headrace.registry.folder import FolderStore
from headrace.registry.s3 import S3Store
from headrace.registry.uploads import Uploads

log = logging.getLogger("headrace.controlplane")


class Commands:
    """What clients of the data plane may ask of the control plane: load and unload models."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def __call__(self, command: Command) -> CommandReply:
        """Carry out a command; errors become replies."""
        try:
            await self._do(command)
        except HeadraceError as error:
            return CommandReply(error.status, error.message)
        return CommandReply(200)

    async def _do(self, command: Command) -> None:
        platform = self._platform
        tenants = await platform.store.read(accounts.list_tenants)
        tenant = next((t for t in tenants if t.index == command.tenant), None)
        if tenant is None:
            raise NotFound("the tenant does not exist any more", field="tenant")
        role: Role = command.role  # type: ignore[assignment]
        request = Request(Principal("data-plane", tenant, role))
        if command.verb == "load":
            await deploying.deploy(platform, request, DeploymentCreate(command.model))
            return
        desired = await platform.store.read(deploy_store.list_all)
        model = await platform.store.read(lambda c: platform.model(c, request, command.model)[1])
        for one in desired:
            if one.model == model.id:
                await deploying.undeploy(platform, request, model.name, one.version, force=True)


class Reports:
    """What routers and replicas report: numbers for the metrics and for where versions are served, and inputs that have
    killed replicas."""

    def __init__(self, platform: Platform, metrics: Metrics, moves: Moves) -> None:
        self._platform = platform
        self._metrics = metrics
        self._moves = moves
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, report: RouterReport | ReplicaReport) -> None:
        """Take a report."""
        self._metrics.take(report)
        if isinstance(report, RouterReport):
            self._moves.take(report)
        if isinstance(report, RouterReport) and report.condemned:
            task = asyncio.get_running_loop().create_task(self._keep(report))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _keep(self, report: RouterReport) -> None:
        """A router says it again until its snapshot says so: one that fails is no loss."""
        try:
            await quarantine.keep(self._platform, report.condemned)
        except HeadraceError as error:
            log.error("inputs that %s has found out were not kept: %s", report.router, error.message)


async def serve(spec: ControlSpec, events: Events) -> None:
    """Run until told to stop."""
    loop = asyncio.get_running_loop()
    stop = watch_stop(loop)
    folder = Path(spec.data)
    store = Store(open_store(spec.database or f"sqlite:///{folder / 'headrace.db'}"))
    control_url = spec.control_url or f"http://{spec.host}:{spec.port}"
    urls = {"url": spec.http_url, "grpc_url": spec.grpc_url, "control_url": control_url}
    await store.run(lambda c: bootstrap(c, folder / "credentials.toml", urls))
    artifacts = open_artifacts(spec, store)
    hub = Hub(
        lambda report: reports(report),
        lambda command: commands(command),
        lambda: manager.wake(),
        lambda _: manager.wake(),
    )
    fleet = open_fleet(spec, hub)
    starts = StartTimes()
    fleet.watch(lambda: starts.observe(fleet.statuses()))
    metrics = Metrics(
        lambda index: tenant_name(publisher, index),
        fleet.statuses,
        lambda: publisher.epoch,
        starts,
        lambda: fleet.zygotes,
        lambda: fleet.holding,
    )
    leadership = Leadership(store, f"{spec.name}@{socket.gethostname()}:{spec.port}", spec.url)
    check = leadership.check
    publisher = Publisher(store, hub, fleet, spec.anonymous_tenant, check)
    placing = Placing(fleet, spec.tiers, metrics.resident_mb)
    sockets = (spec.replica_folder, spec.control)
    manager = Manager(store, fleet, publisher, artifacts, *sockets, spec.drain_s, placing, check, spec.packing)
    rebalancing = Rebalancing(
        store, publisher, placing, fleet.statuses, lambda: manager.standings, spec.rebalance_s, manager.wake
    )
    examiner = Examiner(hidden=variables(spec.database))
    platform = Platform(
        store,
        artifacts,
        examiner,
        publisher,
        Woken(fleet, manager, placing, rebalancing),
        metrics,
        lambda: manager.standings,
        spec.replicas_max,
        spec.packing,
        spec.http_url,
        spec.grpc_url,
        starts,
        spec.tiers,
    )
    commands = Commands(platform)
    moves = Moves(store, manager, spec.packing, spec.replicas_max, check)
    reports = Reports(platform, metrics, moves)
    metrics.hub = hub

    async def lead() -> None:
        token = await leadership.win()
        if spec.ray is not None:
            await hub.listen(spec.ray.reports, bytes.fromhex(spec.ray.secret))
        await fleet.open(spec.name, token)  # nothing is published before it is known what runs
        await hub.listen(spec.control)
        await manager.tick()
        leadership.begin()
        optimisations = Optimisations(platform, check, variables(spec.database))
        background = (artifacts.keep_tidy(), optimisations.run(), moves.run(), rebalancing.run())
        working = [loop.create_task(work) for work in (manager.run(), *background)]
        try:
            await leadership.keep()
        finally:
            for task in working:
                task.cancel()

    api = Forwarding(create_app(platform, spec.artifact_max_bytes), leadership)
    leading = loop.create_task(lead())
    try:
        await first_of(leading, leadership.settled.wait(), stop.wait())
        await serve_api(api, spec, stop, events, leading)
    finally:
        leading.cancel()
        await leadership.give_up()
        hub.close()
        await examiner.close()
        await artifacts.close()
        await fleet.close()
        store.close()


async def first_of(leading: asyncio.Task[None], *others: Awaitable[object]) -> None:
    """Wait until one of them is done. Raises what ended the leading."""
    tasks = [asyncio.ensure_future(other) for other in others]
    await asyncio.wait([leading, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    if leading.done():
        leading.result()


def open_fleet(spec: ControlSpec, hub: Hub) -> LocalFleet | RayFleet:
    """The fleet of the settings."""
    node = LocalFleet(spec.node)
    return node if spec.ray is None else RayFleet(node, LocalFleet(spec.ray.agent), hub)


def open_artifacts(spec: ControlSpec, store: Store) -> Artifacts:
    """The artifact store of the settings; uploads come to this machine's disk first in any case."""
    folder = Path(spec.data)
    uploads = Uploads(folder / "artifacts" / "incoming", spec.artifact_max_bytes)
    if spec.artifacts is None:
        return Artifacts(store, FolderStore(folder / "artifacts"), uploads, spec.artifact_grace_s, None)
    cache = folder / "cache"
    near = Near(Pulls(spec.artifacts, cache, spec.cache_max_bytes, folder / "logs"), Cache(cache, spec.cache_max_bytes))
    return Artifacts(store, S3Store(spec.artifacts), uploads, spec.artifact_grace_s, near)


async def serve_api(
    api: Forwarding, spec: ControlSpec, stop: asyncio.Event, events: Events, leading: asyncio.Task[None]
) -> None:
    """Serve the API until told to stop, then finish what is in flight. Raises OSError when the port cannot be had,
    Deposed when another leads."""
    # Ours rather than uvicorn's: it would end the process where we have something to tell.
    family = socket.AF_INET6 if ":" in spec.host else socket.AF_INET
    listener = socket.create_server((spec.host, spec.port), family=family, backlog=1024, reuse_port=True)
    config = uvicorn.Config(
        api,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=max(int(spec.drain_s), 1),
    )
    server = Api(config)
    serving = asyncio.get_running_loop().create_task(server.serve([listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    try:
        if server.started:
            events.send(ProcessEvent("ready", spec.port))
            await first_of(leading, stop.wait(), asyncio.shield(serving))
    finally:
        server.should_exit = True
        await serving


class Api(uvicorn.Server):
    """Uvicorn without its signal handlers: SIGTERM is `watch_stop`'s."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class Woken:
    """The fleet as the use cases need it: `ports.Fleet`."""

    def __init__(
        self, fleet: LocalFleet | RayFleet, manager: Manager, placing: Placing, rebalancing: Rebalancing
    ) -> None:
        self.statuses = fleet.statuses
        self.wake = manager.wake
        self.placement = rebalancing.plan
        self._fleet = fleet
        self._placing = placing

    def devices(self) -> list[DeviceStatus]:
        """See `ports.Fleet.devices`."""
        return self._placing.shown(self.statuses())

    def summary(self) -> FleetStatus:
        """See `ports.Fleet.summary`."""
        fleet, kind = self._fleet, "local" if isinstance(self._fleet, LocalFleet) else "ray"
        return FleetStatus(kind, fleet.holding, [views.device(one) for one in fleet.devices()])


def tenant_name(publisher: Publisher, index: int) -> str:
    """A tenant's name for labels; empty for none."""
    tenants = publisher.state.tenants
    return tenants[index].name if index in tenants else ""


def main() -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = Events()
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=ControlSpec)
    try:
        uvloop.run(serve(spec, events))
    except Exception as error:
        log.exception("the control plane ends")
        events.send(ProcessEvent("failed", detail=f"{type(error).__name__}: {error}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
