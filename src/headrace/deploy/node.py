"""The node agent: what ``headrace up`` runs.

It holds the data folder's lock and the ports, runs the control plane and the routers and starts them again when they
end, and runs replicas for the control plane. It decides nothing else: a control plane that comes back finds here what
runs, and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from headrace.core.config import Settings
from headrace.core.errors import Conflict, HeadraceError
from headrace.core.specs import (
    ControlSpec,
    ProcessEvent,
    ReplicaEvent,
    ReplicaSpec,
    ReplicaState,
    ReplicaStatus,
    RouterSpec,
)
from headrace.deploy.child import Child
from headrace.deploy.wire import NodeCommand, NodeState

RESTART_S = (0.1, 10.0)
"""First and longest pause before a control plane or router is started again."""
SOCKET_PATH_MAX = 90
"""A Unix socket's path may have 107 bytes; what we add below the run folder has at most 17."""
QUOTA_BYTES = 65_536 * 8
LINE_MAX = 64 << 20


@dataclass
class ReplicaRecord:
    """A replica and what it said last."""

    spec: ReplicaSpec
    child: Child | None = None
    state: ReplicaState = "starting"
    detail: str = ""
    timings_s: dict[str, float] = field(default_factory=dict)
    stopping: bool = False

    def status(self) -> ReplicaStatus:
        """As the fleet port shows it."""
        pid = self.child.pid if self.child is not None else 0
        return ReplicaStatus(self.spec, self.state, pid, self.detail, self.timings_s)


class NodeInfo(msgspec.Struct):
    """``node.json`` in the data folder: where this node is to be found."""

    pid: int
    http_url: str
    grpc_url: str
    control_url: str
    control_pid: int
    router_pids: list[int]


class Node:
    """The agent's state."""

    def __init__(self, settings: Settings, folder: Path, run: Path, ports: dict[str, int]) -> None:
        self.settings = settings
        self.folder = folder
        self.run = run
        self.ports = ports
        self.logs = folder / "logs"
        self.replicas: dict[str, ReplicaRecord] = {}
        self.services: dict[str, Child] = {}
        self.ready: set[str] = set()
        self.failures: dict[str, str] = {}
        self.stopping = asyncio.Event()
        self.changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    # ------------------------------------------------------------------------------------------------ services
    def url(self, kind: str) -> str:
        """Where clients reach ``http``, ``grpc`` or ``control``."""
        port = self.ports[kind]
        if port < 0:
            return ""
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "::") else self.settings.host
        return f"{host}:{port}" if kind == "grpc" else f"http://{host}:{port}"

    def service_specs(self) -> dict[str, tuple[str, msgspec.Struct]]:
        """Name -> (module, spec) of the control plane and the routers."""
        s = self.settings
        specs: dict[str, tuple[str, msgspec.Struct]] = {
            "control": (
                "headrace.controlplane.main",
                ControlSpec(
                    str(self.folder),
                    s.host,
                    self.ports["control"],
                    f"unix:{self.run}/control.sock",
                    f"unix:{self.run}/node.sock",
                    str(self.run),
                    s.anonymous_tenant,
                    s.artifact_max_bytes,
                    s.drain_s,
                    self.url("http"),
                    self.url("grpc"),
                ),
            )
        }
        for k in range(s.routers):
            specs[f"router-{k}"] = ("headrace.router.main", self._router(f"router-{k}", self.ports["http"]))
        if self.ports["grpc"] >= 0:
            specs["router-grpc"] = ("headrace.router.grpc_main", self._router("router-grpc", self.ports["grpc"]))
        return specs

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
        )

    async def keep(self, name: str, module: str, spec: msgspec.Struct) -> None:
        """Run a service for as long as the node lives."""
        pause = RESTART_S[0]
        loop = asyncio.get_running_loop()
        while not self.stopping.is_set():
            started = loop.time()
            child = Child(name, module, spec, self.logs, lambda line: self._service_event(name, line), lambda _: None)
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
        info = NodeInfo(os.getpid(), self.url("http"), self.url("grpc"), self.url("control"), control, pids)
        temporary = self.folder / f".node.json.{os.getpid()}"
        temporary.write_bytes(msgspec.json.encode(info) + b"\n")
        os.replace(temporary, self.folder / "node.json")

    # ------------------------------------------------------------------------------------------------ replicas
    def command(self, command: NodeCommand) -> None:
        """Do what the control plane asks."""
        record = self.replicas.get(command.replica)
        if command.verb == "start" and record is None and command.spec is not None and not self.stopping.is_set():
            self.replicas[command.replica] = record = ReplicaRecord(command.spec)
            record.child = self._start(record)
        elif command.verb == "stop" and record is not None and record.child is not None:
            record.stopping = True
            record.child.terminate()
            asyncio.get_running_loop().call_later(command_grace(record.spec), record.child.kill)
        elif command.verb == "forget" and record is not None and record.state in ("stopped", "crashed", "failed"):
            del self.replicas[command.replica]
        self.touch()

    def _start(self, record: ReplicaRecord) -> Child:
        def line(text: bytes) -> None:
            event = msgspec.json.decode(text, type=ReplicaEvent)
            record.state, record.timings_s = event.state, event.timings_s or record.timings_s
            record.detail = event.detail
            self.touch()

        def ended(code: int) -> None:
            if record.state == "failed":
                pass
            elif record.stopping or (code == 0 and record.state == "draining"):
                record.state = "stopped"
            else:
                record.state = "crashed"
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                record.detail = how
            path = record.spec.address.removeprefix("unix:")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self.touch()

        return Child(record.spec.id, "headrace.server.main", record.spec, self.logs, line, ended)

    # ------------------------------------------------------------------------------------------------ socket
    def touch(self) -> None:
        """Something has changed: tell whoever listens."""
        self.changed.set()

    def state(self) -> bytes:
        """What the control plane reads."""
        routers = sorted(name for name in self.ready if name.startswith("router"))
        return msgspec.json.encode(NodeState([r.status() for r in self.replicas.values()], routers)) + b"\n"

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
        groups = [
            [child for name, child in self.services.items() if name.startswith("router")],
            [record.child for record in self.replicas.values() if record.child is not None],
            [child for name, child in self.services.items() if name == "control"],
        ]
        for record in self.replicas.values():
            record.stopping = True
        for group in groups:
            stops = [asyncio.ensure_future(child.stop(drain_s)) for child in group if not child.exited.is_set()]
            while not all(stop.done() for stop in stops):
                if hurry.is_set():
                    for child in group:
                        child.kill()
                await asyncio.wait(stops, timeout=0.2)


def command_grace(spec: ReplicaSpec) -> float:
    """Seconds after which a replica that does not end by itself is killed."""
    return spec.drain_s + 5.0


def lock(folder: Path) -> IO[str]:
    """Take the data folder. Raises Conflict when another node has it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise Conflict(
            f"data: {folder} is in use by another headrace (process {holder})",
            field="data",
            hint="stop that one, or give this one its own folder with --data",
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    os.set_inheritable(file.fileno(), False)
    return file


def reserve_port(host: str, port: int, option: str) -> tuple[socket.socket, int]:
    """Hold a port so that several processes may listen on it; returns it and its number. Raises Conflict."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port:
        with socket.socket(family) as probe:
            # As a server would: a port in TIME_WAIT is free, one that is listened on is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise Conflict(
                    f"{option}: port {port} on {host} cannot be had: {error.strerror}",
                    field=option,
                    hint=f"choose another with --{option.replace('_', '-')}, 0 lets the system choose",
                ) from None
    held = socket.socket(family)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((host, port))
    return held, held.getsockname()[1]


def run_folder(folder: Path) -> Path:
    """Where sockets go: below the data folder, or in the temporary one where its path is too long for a socket."""
    run = folder / "run"
    if len(str(run)) > SOCKET_PATH_MAX:
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        run = Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}-{name}"
    run.mkdir(mode=0o700, exist_ok=True)
    if run.stat().st_uid != os.getuid():
        raise Conflict(f"data: {run} belongs to another user", field="data")
    os.chmod(run, 0o700)
    for left in run.iterdir():
        if left.is_socket():
            left.unlink()
    return run


async def serve(settings: Settings, folder: Path) -> int:
    """Run the node until it is told to stop."""
    held, ports = [], {}
    for kind in ("http", "grpc", "control"):
        wanted = getattr(settings, f"{kind}_port")
        ports[kind] = -1
        if wanted >= 0:
            socket_, ports[kind] = reserve_port(settings.host, wanted, f"{kind}_port")
            held.append(socket_)
    run = run_folder(folder)
    # A new file: arrival times of an earlier boot would mean nothing.
    (run / "quota").unlink(missing_ok=True)
    (run / "quota").write_bytes(bytes(QUOTA_BYTES))
    (folder / "logs").mkdir(exist_ok=True)
    node = Node(settings, folder, run, ports)
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()

    def interrupted() -> None:
        if node.stopping.is_set():
            hurry.set()
        node.stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    server = await asyncio.start_unix_server(node.connected, str(run / "node.sock"), limit=LINE_MAX)
    os.chmod(run / "node.sock", 0o600)
    tasks = [loop.create_task(node.tell())]
    specs = node.service_specs()
    services = [loop.create_task(node.keep(name, module, spec)) for name, (module, spec) in specs.items()]
    announcing = loop.create_task(announce(node, set(specs)))
    await node.stopping.wait()
    announcing.cancel()
    print("headrace: draining ... (again to stop at once)", file=sys.stderr, flush=True)
    await node.shut_down(hurry)
    await asyncio.gather(*services)
    server.close()
    for task in tasks:
        task.cancel()
    for socket_ in held:
        socket_.close()
    (folder / "node.json").unlink(missing_ok=True)
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
        f"  control plane    {node.url('control')}",
        f"  data             {node.folder}",
        f"  admin key        {node.folder / 'credentials.toml'}",
        "stop with Ctrl-C",
    ]
    print("\n".join(lines), flush=True)


def run_node(settings: Settings) -> int:
    """Run a node until Ctrl-C or SIGTERM; returns the exit code.

    Raises:
        HeadraceError: the folder or a port cannot be had.
    """
    folder = Path(settings.data).expanduser().resolve()
    os.environ["HEADRACE_LOG_LEVEL"] = settings.log_level
    try:
        held = lock(folder)
    except OSError as error:
        raise HeadraceError(f"data: {folder}: {error.strerror}", field="data") from None
    with held:
        return asyncio.run(serve(settings, folder))


def replica_id(model: str, version: int) -> str:
    """A new replica's id, which says what it serves; short, for it names a socket."""
    return f"{model.rpartition('/')[2][:24]}-{version}-{secrets.token_hex(3)}"
