"""The node agent: what ``headrace up`` runs.

It holds the data folder's lock and the ports, runs the control plane and the routers and starts them again when they
end, and runs replicas for the control plane. It decides nothing else: a control plane that comes back finds here what
runs, and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from headrace.core.config import Settings, runtimes_of
from headrace.core.errors import HeadraceError, InvalidInput, Unprocessable
from headrace.core.forms import forms_folder
from headrace.core.logs import configure
from headrace.core.process import engine_environment, watch_input
from headrace.core.secret import variables
from headrace.core.specs import (
    CatalogChange,
    ControlSpec,
    Packing,
    ProcessEvent,
    ReplicaEvent,
    ReplicaSpec,
    RouterSpec,
    ServedPart,
    ServedVersion,
)
from headrace.core.storage import S3Spec, s3_of
from headrace.core.zygote import runtime_of
from headrace.deploy import ray_services, states
from headrace.deploy.catalog import Catalog
from headrace.deploy.child import Child
from headrace.deploy.forms import Forms
from headrace.deploy.inventory import devices, visible
from headrace.deploy.place import clear_sockets, lock, new_quota, reserve_port, run_folder
from headrace.deploy.pulls import Pulls
from headrace.deploy.record import ReplicaRecord
from headrace.deploy.wire import NodeCommand, NodeState
from headrace.deploy.zygotes import Zygotes

RESTART_S = (0.1, 10.0)
"""First and longest pause before a control plane or router is started again."""
LEAVING_S = 5.0
"""How long the processes of a node that was killed may take to let go of their ports."""
LINE_MAX = 64 << 20
SOON_S = 0.05
FILES_MAX = 1 << 16
Served = TypeVar("Served", ServedVersion, ServedPart)


class NodeInfo(msgspec.Struct):
    """``node.json`` in the data folder: where this node is to be found."""

    pid: int
    http_url: str
    grpc_url: str
    control_url: str
    control_pid: int
    router_pids: list[int]
    control_urls: list[str] = []
    """Of all control planes; the first is `control_url`."""
    control_pids: list[int] = []


class Node:
    """The agent's state."""

    def __init__(
        self, settings: Settings, folder: Path, run: Path, ports: dict[str, int], store: S3Spec | None = None
    ) -> None:
        self.settings = settings
        self.store = store
        self.folder = folder
        self.run = run
        self.ports = ports
        self.devices = devices(socket.gethostname(), settings.devices, settings.tiers)
        self.logs = folder / "logs"
        self.replicas: dict[str, ReplicaRecord] = {}
        self.services: dict[str, Child] = {}
        self.ready: set[str] = set()
        self.failures: dict[str, str] = {}
        self.stopping = asyncio.Event()
        self.changed = asyncio.Event()
        self.fence = 0
        """The highest fencing token of a control plane."""
        self.leader = ""
        """Its name among the services."""
        self._writers: set[asyncio.StreamWriter] = set()
        self.forms = Forms(forms_folder(folder), settings.forms_max_bytes, self.logs)
        self.zygotes = Zygotes(self.logs, settings.idle_processes, variables(settings.database))
        self._touching: asyncio.TimerHandle | None = None
        self.pulls: Pulls | None = None
        """Where artifacts are kept elsewhere."""
        if store is not None:
            cache = folder / "cache"
            self.pulls = Pulls(store, cache, settings.cache_max_bytes, self.logs, self.touch)
        self.ray = ray_services.link(settings, folder, run, ports["fleet"]) if settings.fleet == "ray" else None

    # ------------------------------------------------------------------------------------------------ services
    def url(self, kind: str) -> str:
        """Where clients reach ``http``, ``grpc``, or ``control`` and the others of `control_names`."""
        port = self.ports[kind]
        if port < 0:
            return ""
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "::") else self.settings.host
        return f"{host}:{port}" if kind == "grpc" else f"http://{host}:{port}"

    def service_specs(self) -> dict[str, tuple[str, msgspec.Struct]]:
        """Name -> (module, spec) of the control plane and the routers."""
        s = self.settings
        specs: dict[str, tuple[str, msgspec.Struct]] = {}
        for name in control_names(s):
            specs[name] = ("headrace.controlplane.main", self._control(name))
        for k in range(s.routers):
            specs[f"router-{k}"] = ("headrace.router.main", self._router(f"router-{k}", self.ports["http"]))
        if self.ports["grpc"] >= 0:
            specs["router-grpc"] = ("headrace.router.grpc_main", self._router("router-grpc", self.ports["grpc"]))
        if self.ray is not None:
            specs |= ray_services.services(s, self.ray, self.folder, self.run, self.store)
        return specs

    def _control(self, name: str) -> ControlSpec:
        s = self.settings
        return ControlSpec(
            str(self.folder),
            s.host,
            self.ports[name],
            f"unix:{self.run}/control.sock",
            f"unix:{self.run}/node.sock",
            str(self.run),
            s.anonymous_tenant,
            s.artifact_max_bytes,
            s.replicas_max,
            s.drain_s,
            self.url("http"),
            self.url("grpc"),
            self.store,
            s.artifact_grace_s,
            s.cache_max_bytes,
            s.database,
            name,
            self.url(name),
            self.url("control"),
            Packing(**{name: getattr(s, name) for name in Packing.__struct_fields__}),
            s.tiers,
            s.rebalance_s,
            self.ray,
        )

    def _router(self, name: str, port: int) -> RouterSpec:
        s = self.settings
        return RouterSpec(
            name,
            s.host,
            port,
            f"unix:{self.run}/control.sock",
            str(self.folder / f"snapshot-{name}.msgpack"),
            str(self.run / "quota"),
            bool(s.anonymous_tenant),
            s.timeout_s,
            s.idle_timeout_s,
            s.header_timeout_s,
            s.max_connections,
            s.drain_s,
            self.ray.secret if self.ray is not None else "",
        )

    async def keep(self, name: str, module: str, spec: msgspec.Struct) -> None:
        """Run a service for as long as the node lives."""
        pause = RESTART_S[0]
        loop = asyncio.get_running_loop()
        while not self.stopping.is_set():
            started = loop.time()
            hidden = () if isinstance(spec, ControlSpec) else variables(self.settings.database)
            line = partial(self._service_event, name)
            child = Child(name, module, spec, self.logs, line, lambda _: None, None, hidden)
            self.services[name] = child
            await child.exited.wait()
            self.ready.discard(name)
            self.touch()
            if self.stopping.is_set():
                return
            self.failures.setdefault(name, child.log_tail())
            pause = RESTART_S[0] if loop.time() - started > RESTART_S[1] else min(pause * 2, RESTART_S[1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), pause)

    def _service_event(self, name: str, line: bytes) -> None:
        event = msgspec.json.decode(line, type=ProcessEvent)
        if event.state == "ready":
            self.ready.add(name)
            self.failures.pop(name, None)
        else:
            self.failures[name] = event.detail
        self.write_info()
        self.touch()

    def write_info(self) -> None:
        """Tell on disk where we are."""
        pids = [child.pid for name, child in sorted(self.services.items()) if name.startswith("router")]
        control = self.services["control"].pid if "control" in self.services else 0
        names = control_names(self.settings)
        info = NodeInfo(
            os.getpid(),
            self.url("http"),
            self.url("grpc"),
            self.url("control"),
            control,
            pids,
            [self.url(name) for name in names],
            [self.services[name].pid for name in names if name in self.services],
        )
        temporary = self.folder / f".node.json.{os.getpid()}"
        temporary.write_bytes(msgspec.json.encode(info) + b"\n")
        os.replace(temporary, self.folder / "node.json")

    # ------------------------------------------------------------------------------------------------ replicas
    def lead(self, name: str, token: int) -> None:
        """Obey this control plane from now on. The one that led before may be paused, with the routers' and replicas'
        connections in its hands: it is ended, so that they go to the new one."""
        if self.leader and self.leader != name and self.leader in self.services:
            self.services[self.leader].kill()
        self.leader, self.fence = name, token

    def command(self, command: NodeCommand) -> None:
        """Do what the control plane that leads asks; whoever led before it is not heard."""
        if command.token < self.fence:
            return
        if command.verb == "lead":
            self.lead(command.replica, command.token)
        record = self.replicas.get(command.replica)
        if command.verb == "start" and record is None and command.spec is not None and not self.stopping.is_set():
            self.replicas[command.replica] = record = ReplicaRecord(command.spec)
            record.begun = asyncio.get_running_loop().time()
            if command.spec.pack is not None:
                record.catalog = self._catalog(record)
            if all(served.artifact and all(part.artifact for part in served.parts) for served in command.spec.versions):
                record.child = self._start(record)
            else:
                record.state = "pulling"
                record.bringing = asyncio.get_running_loop().create_task(self._bring(record))
        elif command.verb == "stop" and record is not None:
            record.stop()
            if record.child is not None:
                record.child.terminate()
                asyncio.get_running_loop().call_later(command_grace(record.spec), record.child.kill)
        elif command.verb == "forget" and record is not None and record.state in states.ENDED:
            del self.replicas[command.replica]
        elif command.verb == "catalog" and record is not None and record.catalog and command.catalog is not None:
            record.catalog.order(command.catalog)
            return self.touch_soon()
        self.touch()

    def _catalog(self, record: ReplicaRecord) -> Catalog:
        def say(change: CatalogChange) -> None:
            if record.child is not None:
                record.child.say(change)

        async def near(served: ServedVersion, held: list[int]) -> ServedVersion:
            return await self._near(served, record, held)

        return Catalog(say, near, self.touch_soon)

    async def _bring(self, record: ReplicaRecord) -> None:
        """Have a replica's artifacts here, and then start it."""
        started = asyncio.get_running_loop().time()
        try:
            versions = []
            for served in record.spec.versions:
                parts = tuple([await self._near(part, record, record.held) for part in served.parts])
                versions.append(msgspec.structs.replace(await self._near(served, record, record.held), parts=parts))
        except HeadraceError as error:
            record.unstartable(error)
        else:
            record.spec = msgspec.structs.replace(record.spec, versions=tuple(versions))
            record.timings_s["pull"] = asyncio.get_running_loop().time() - started
            if record.stopping:
                record.ended(0)
            else:
                record.state = states.step(states.REPLICA, record.state, "starting")
                record.child = self._start(record)
        self.touch()

    async def _near(self, served: Served, record: ReplicaRecord, held: list[int]) -> Served:
        """A version, or a pipeline's part, whose artifact is here; `held` gets what keeps it here. Raises
        Unprocessable, Unavailable."""
        if served.artifact:
            return served
        if self.pulls is None:
            raise Unprocessable("the version's artifact is not on this node, which has no store to pull it from")
        pulls = self.pulls
        record.waits_for = lambda: pulls.progress(served.digest)
        path, descriptor = await pulls.get(served.digest, served.size_bytes)
        record.waits_for = str
        held.append(descriptor)
        return msgspec.structs.replace(served, artifact=str(path))

    def _start(self, record: ReplicaRecord) -> Child:
        def line(text: bytes) -> None:
            event = msgspec.json.decode(text, type=ReplicaEvent)
            record.said(event)
            if event.entry is not None:
                return self.touch_soon()
            record.timed(event, asyncio.get_running_loop().time())
            if record.state == "ready":
                for served in record.spec.versions:
                    self.forms.want(served)
                if record.catalog is not None:
                    record.catalog.open()
            self.touch()

        def ended(code: int) -> None:
            record.ended(code)
            last = record.child.log_tail() if record.child is not None else ""
            if record.state == "crashed" and last and not record.last_words:
                record.detail += f": {last}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(record.spec.address.removeprefix("unix:"))
            self.touch()

        spec = msgspec.structs.replace(record.spec, forms=self.forms.folder)
        hidden = variables(self.settings.database)
        environment = engine_environment(spec.threads) | visible(spec.device)
        engines = [served.engine for served in spec.versions]
        runtime = runtime_of(engines, spec.threads) if engines and self.settings.zygotes != "off" else None
        launch = self.zygotes.launch(runtime) if runtime is not None else None
        return Child(spec.id, "headrace.server.main", spec, self.logs, line, ended, environment, hidden, launch)

    # ------------------------------------------------------------------------------------------------ socket
    def touch(self) -> None:
        """Something has changed: tell whoever listens."""
        self.changed.set()

    def touch_soon(self) -> None:
        """Likewise, with what follows it: a state has every version of every pack, and of those many change at once."""
        if self._touching is None:
            self._touching = asyncio.get_running_loop().call_later(SOON_S, self._touch_now)

    def _touch_now(self) -> None:
        self._touching = None
        self.touch()

    def state(self) -> bytes:
        """What the control plane reads."""
        routers = sorted(name for name in self.ready if name.startswith("router"))
        replicas = [record.status() for record in self.replicas.values()]
        return msgspec.json.encode(NodeState(replicas, routers, self.zygotes.statuses(), self.devices)) + b"\n"

    async def tell(self) -> None:
        """Send the state after every change."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            line = self.state()
            for writer in list(self._writers):
                if not writer.is_closing():
                    writer.write(line)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one control plane."""
        self._writers.add(writer)
        writer.write(self.state())
        try:
            while line := await reader.readline():
                self.command(msgspec.json.decode(line, type=NodeCommand))
        except (ConnectionError, msgspec.MsgspecError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def shut_down(self, hurry: asyncio.Event) -> None:
        """Routers first: they finish what is in flight; then replicas, then the control plane."""
        drain_s = self.settings.drain_s + 1.0
        await stop_all([c for name, c in self.services.items() if name.startswith("router")], drain_s, hurry)
        # Only now: a replica that is draining leaves the snapshot, and the routers' last requests need it there.
        for record in self.replicas.values():
            record.stop()
        if self.pulls is not None:
            await self.pulls.close()
        await stop_all([r.child for r in self.replicas.values() if r.child is not None], drain_s, hurry)
        await self.forms.close()
        await self.zygotes.close()
        # With Ray the agent ends the replicas, and so outlasts their drain.
        await stop_all([c for name, c in self.services.items() if name == "ray-agent"], 2 * drain_s, hurry)
        await stop_all([c for name, c in self.services.items() if name.startswith("control")], drain_s, hurry)
        await stop_all([c for name, c in self.services.items() if name == "ray-head"], drain_s, hurry)


async def stop_all(children: list[Child], drain_s: float, hurry: asyncio.Event) -> None:
    """Have processes drain and leave; at once when there is a hurry."""
    loop = asyncio.get_running_loop()
    stops = [loop.create_task(child.stop(drain_s)) for child in children if not child.exited.is_set()]
    hurrying = loop.create_task(hurry.wait())
    waiting = set(stops)
    while waiting:
        if hurry.is_set():
            for child in children:
                child.kill()
            await asyncio.wait(waiting)
            break
        _, pending = await asyncio.wait({*waiting, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        waiting &= pending
    hurrying.cancel()


def command_grace(spec: ReplicaSpec) -> float:
    """Seconds after which a replica that does not end by itself is killed."""
    return spec.drain_s + 5.0


def raise_file_limit() -> None:
    """A descriptor keeps each artifact of a shared version from eviction: there may be thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(FILES_MAX, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def control_names(settings: Settings) -> list[str]:
    """The control planes' names: ``control``, ``control-1``, ..."""
    return ["control", *(f"control-{k}" for k in range(1, settings.control_planes))]


async def hold_ports(settings: Settings, folder: Path) -> tuple[list[socket.socket], dict[str, int]]:
    """Reserve the ports of ``http``, ``grpc``, the control planes, which follow each other, and ``fleet`` where there
    are other nodes; -1 for one that is off. Raises Conflict."""
    # A node that ended by itself has taken its note away; one that was killed has processes that are just leaving.
    patience_s = LEAVING_S if (folder / "node.json").exists() else 0.0
    held, ports = [], {}
    for kind in ("http", "grpc", *control_names(settings), *(["fleet"] if settings.fleet == "ray" else [])):
        kind_of, _, place = kind.partition("-")
        option = f"{kind_of}_port"
        wanted = getattr(settings, option)
        wanted += int(place or 0) if wanted > 0 else 0
        ports[kind] = -1
        if wanted >= 0:
            host = ray_services.host_of(settings) if kind == "fleet" else settings.host
            socket_, ports[kind] = await reserve_port(host, wanted, option, patience_s)
            held.append(socket_)
    return held, ports


async def serve(settings: Settings, folder: Path, store: S3Spec | None, with_parent: bool) -> int:
    """Run the node until it is told to stop, or standard input ends where the parent holds it."""
    held, ports = await hold_ports(settings, folder)
    run = run_folder(folder)
    raise_file_limit()
    new_quota(run)
    (folder / "logs").mkdir(exist_ok=True)
    node = Node(settings, folder, run, ports, store)
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()

    def interrupted() -> None:
        if node.stopping.is_set():
            hurry.set()
        node.stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    if with_parent:
        watch_input(loop, node.stopping.set)
    server = await asyncio.start_unix_server(node.connected, str(run / "node.sock"), limit=LINE_MAX)
    os.chmod(run / "node.sock", 0o600)
    telling = loop.create_task(node.tell())
    node.zygotes.start(runtimes_of(settings.zygotes))
    specs = node.service_specs()
    services = [loop.create_task(node.keep(name, module, spec)) for name, (module, spec) in specs.items()]
    announcing = loop.create_task(announce(node, set(specs)))
    await node.stopping.wait()
    announcing.cancel()
    print("headrace: draining ... (again to stop at once)", file=sys.stderr, flush=True)
    await node.shut_down(hurry)
    await asyncio.gather(*services)
    server.close()
    telling.cancel()
    for socket_ in held:
        socket_.close()
    (folder / "node.json").unlink(missing_ok=True)
    clear_sockets(run)
    return 0


async def announce(node: Node, wanted: set[str]) -> None:
    """Print where everything is, once everything is there; and what fails to start, once."""
    told: dict[str, str] = {}
    while node.ready < wanted:
        for name, why in node.failures.items():
            if told.get(name) != why:
                told[name] = why
                print(f"headrace: {name} does not start: {why} (logs/{name}.log)", file=sys.stderr, flush=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(node.changed.wait(), 0.2)
        await asyncio.sleep(0.02)
    node.write_info()
    lines = [
        "headrace is up",
        f"  inference, HTTP  {node.url('http')}",
        *([f"  inference, gRPC  {node.url('grpc')}"] if node.ports["grpc"] >= 0 else []),
        f"  control plane    {' '.join(node.url(name) for name in control_names(node.settings))}",
        *([f"  fleet            Ray, {ray_services.address_of(node.settings)}"] if node.ray is not None else []),
        f"  data             {node.folder}",
        f"  admin key        {node.folder / 'credentials.toml'}",
        "stop with Ctrl-C",
    ]
    print("\n".join(lines), flush=True)


def run_node(settings: Settings, with_parent: bool = False) -> int:
    """Run a node until Ctrl-C or SIGTERM, or with its parent until that is gone; returns the exit code.

    Raises:
        HeadraceError: the folder or a port cannot be had.
    """
    folder = Path(settings.data).expanduser().resolve()
    try:
        configure(settings.log_level)
    except ValueError:
        expected = "debug, info, warning or error"
        raise InvalidInput(f"log_level: {settings.log_level!r}, expected {expected}", field="log_level") from None
    os.environ["HEADRACE_LOG_LEVEL"] = settings.log_level  # the children's
    try:
        held = lock(folder)
    except OSError as error:
        raise HeadraceError(f"data: {folder}: {error.strerror}", field="data") from None
    with held:
        return asyncio.run(serve(settings, folder, s3_of(settings, os.environ), with_parent))
