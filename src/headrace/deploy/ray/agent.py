"""The process that speaks with Ray: ``python -m headrace.deploy.ray.agent``, its RayAgentSpec as the first line of
standard input.

A process of its own, which the node starts again: whatever has connected to Ray is ended by it when its head stays away
(after 60 s, or as soon as a new one answers that knows nobody), and a control plane must not be. Control planes command
it over a Unix socket as they do a node's agent. It decides nothing. What it knows of the replicas is on disk too, so
that it can tell of them while Ray does not answer; then it *holds*, and says so.

Fencing: it obeys the highest token that it has seen, hands the token on to the actors, and these do the same. What a
leader of long ago starts even so, beside a new one, carries a name that the new one finds in Ray's list, and stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headrace.core.addresses import parse_tcp
from headrace.core.handshake import replica_key
from headrace.core.process import Events, watch_input
from headrace.core.specs import ProcessEvent, ReplicaStatus
from headrace.deploy import states
from headrace.deploy.ray import plan
from headrace.deploy.ray.actor import ReplicaActor
from headrace.deploy.ray.wire import Launch, RayAgentSpec, namespace_of
from headrace.deploy.wire import NodeCommand, NodeState

log = logging.getLogger("headrace.deploy.ray")
LOOK_S = 1.0
"""Pause between two looks at Ray's table of nodes."""
HOLD_S = 3.0
"""Ray's head does not answer for so long: hold."""
FIND_S = 10.0
"""Pause between two looks for actors that somebody else has made."""
PROBE_S = 2.0
AGAIN_S = 0.5
CALLS_MAX = 64
"""Calls of an actor at once; each agent that has followed it leaves one behind for a while."""
LINE_MAX = 64 << 20


@dataclass
class Tracked:
    """A replica, as last heard, and its actor."""

    status: ReplicaStatus
    actor: Any = None
    task: asyncio.Task[None] | None = None
    """Places it, and then follows it."""
    stopping: bool = False

    @property
    def ended(self) -> bool:
        """Nothing more will be heard of it, unless it is lost and serves on."""
        return self.status.state in states.ENDED


class Agent:
    """The agent's state."""

    def __init__(self, spec: RayAgentSpec) -> None:
        self.spec = spec
        self.namespace = namespace_of(spec.secret)
        self.replicas: dict[str, Tracked] = {}
        self.nodes: list[plan.Node] = []
        self.holding = f"Ray's head at {spec.address} has not answered yet"
        self.fence = 0
        self.stopping = False
        self.changed = asyncio.Event()
        self.listen: Callable[[], None] = lambda: None
        """Installs the handler of SIGTERM."""
        self._remote: Any = ray.remote(ReplicaActor)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._path = Path(spec.state_path)
        self._restore()

    # ------------------------------------------------------------------------------------------------ memory
    def _restore(self) -> None:
        try:
            known = msgspec.json.decode(self._path.read_bytes(), type=NodeState)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("what was known of the replicas cannot be read: %s", error)
            return
        self.replicas = {status.spec.id: Tracked(status) for status in known.replicas}

    def state(self) -> NodeState:
        """What control planes read."""
        statuses = [one.status for one in self.replicas.values()]
        return NodeState(statuses, [], devices=tuple(plan.devices(self.nodes)), holding=self.holding)

    async def tell(self) -> None:
        """Send the state, and keep it, after every change."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            line = msgspec.json.encode(self.state())
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            try:
                temporary.write_bytes(line)
                os.replace(temporary, self._path)
            except OSError as error:
                log.warning("what is known of the replicas was not kept: %s", error)
            for writer in list(self._writers):
                if not writer.is_closing():
                    writer.write(line + b"\n")

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one control plane."""
        self._writers.add(writer)
        writer.write(msgspec.json.encode(self.state()) + b"\n")
        try:
            while line := await reader.readline():
                self.command(msgspec.json.decode(line, type=NodeCommand))
        except (ConnectionError, msgspec.MsgspecError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    # ------------------------------------------------------------------------------------------------ commands
    def command(self, command: NodeCommand) -> None:
        """Do what the control plane that leads asks; whoever led before it is not heard."""
        if command.token < self.fence:
            return
        self.fence = command.token
        one = self.replicas.get(command.replica)
        if command.verb == "start" and one is None and command.spec is not None and not self.stopping:
            # `pulling` until an actor says more: it has no process yet, so it holds up nobody who could start.
            one = self.replicas[command.replica] = Tracked(ReplicaStatus(command.spec, "pulling"))
            one.task = self._work(self._place(one, command.token))
        elif command.verb == "stop" and one is not None:
            self._stop(one, command.token)
        elif command.verb == "forget" and one is not None and one.ended:
            del self.replicas[command.replica]
            if one.actor is not None:
                self._work(self._end(one.actor))
        self.changed.set()

    def _stop(self, one: Tracked, token: int) -> None:
        one.stopping = True
        if one.status.lost:
            one.status = msgspec.structs.replace(one.status, state="stopped")
        elif not one.ended and one.status.state != "draining":
            placed = one.status.pid or one.status.state != "pulling"
            one.status = msgspec.structs.replace(one.status, state="draining")
            if one.actor is not None and placed:
                self._work(self._say_stop(one, token))
            else:
                self._finish(one, "stopped", "")
                if one.actor is not None:
                    self._work(self._end(one.actor))

    async def _say_stop(self, one: Tracked, token: int) -> None:
        with contextlib.suppress(RayError):
            await one.actor.stop.remote(token)

    @staticmethod
    async def _end(actor: Any) -> None:
        with contextlib.suppress(RayError):
            await asyncio.to_thread(ray.kill, actor)

    def _work(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the agent failed", exc_info=error)

    # ------------------------------------------------------------------------------------------------ replicas
    async def _place(self, one: Tracked, token: int) -> None:
        spec = one.status.spec
        asked = plan.ask(spec, self.nodes)
        if asked is None:
            self._finish(one, "crashed", f"the node of {spec.device} is not there any more")
            return
        one.status = msgspec.structs.replace(one.status, detail=f"waiting for Ray to place it: {asked}")
        self.changed.set()
        options: dict[str, Any] = {
            "name": spec.id,
            "namespace": self.namespace,
            "lifetime": "detached",
            "max_restarts": 0,
            "max_concurrency": CALLS_MAX,
            "num_cpus": asked.cpus,
            "num_gpus": asked.gpus or None,
            "memory": asked.memory_bytes,
        }
        if asked.node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(asked.node, soft=False)
        else:
            # Ray would fill one node before it takes the next, and that one's loss would be everything's.
            options["scheduling_strategy"] = "SPREAD"
            options["label_selector"] = dict(asked.labels) or None
        key = replica_key(bytes.fromhex(self.spec.secret), spec.id).hex()
        launch = msgspec.json.encode(Launch(spec, token, key, self.spec.site))
        try:
            one.actor = await asyncio.to_thread(lambda: self._remote.options(**options).remote())
            if one.stopping:
                await self._end(one.actor)
                return
            await one.actor.begin.remote(launch)
        except (RayError, ValueError) as error:
            if not one.ended:
                self._finish(one, "failed" if isinstance(error, RayTaskError) else "crashed", reason(error))
            return
        if not one.ended:
            await self._follow(one)

    async def _follow(self, one: Tracked) -> None:
        """Keep what its actor says of it, until one of them has ended."""
        seen = 0
        while not one.ended:
            try:
                seen, said = await one.actor.news.remote(seen)
            except ActorUnavailableError:
                await asyncio.sleep(AGAIN_S)
                continue
            except RayError as error:
                self._lose(one, reason(error))
                return
            if not said:
                self._finish(one, "crashed", "its actor was never told what to run")
            elif (status := msgspec.json.decode(said, type=ReplicaStatus)) != one.status:
                one.status = status
                self.changed.set()

    def _lose(self, one: Tracked, why: str) -> None:
        """Nothing is known of it any more: it may serve on, or be gone with its machine."""
        if one.ended:
            return
        serving = one.status.state in ("ready", "draining") and not one.stopping
        self._finish(one, "stopped" if one.stopping else "crashed", f"its actor was lost: {why}", lost=serving)

    def _finish(self, one: Tracked, state: Any, detail: str, lost: bool = False) -> None:
        one.status = msgspec.structs.replace(one.status, state=state, detail=detail, lost=lost)
        self.changed.set()

    # ------------------------------------------------------------------------------------------------ Ray
    async def run(self, told: Callable[[ProcessEvent], None]) -> None:
        """Connect, find what runs, and watch Ray for as long as it lasts."""
        loop = asyncio.get_running_loop()
        await self._connect(told)
        asking: asyncio.Task[Any] | None = None
        find_at = loop.time()
        while True:
            asking = asking or loop.create_task(asyncio.to_thread(ray.nodes))
            done, _ = await asyncio.wait({asking}, timeout=HOLD_S)
            holding = "" if done else f"Ray's head at {self.spec.address} does not answer"
            if done:
                found = [row(node) for node in asking.result()]
                asking = None
                if loop.time() >= find_at:
                    await self._find()
                    find_at = loop.time() + FIND_S
                if found != self.nodes:
                    self.nodes = found
                    self.changed.set()
            if holding != self.holding:
                log.warning("holding: %s", holding) if holding else log.info("Ray answers")
                self.holding = holding
                self.changed.set()
            await asyncio.sleep(LOOK_S)

    async def _connect(self, told: Callable[[ProcessEvent], None]) -> None:
        host, port = parse_tcp(self.spec.address)
        while True:
            try:
                async with asyncio.timeout(PROBE_S):  # Ray itself waits for minutes, and then ends the process
                    _, writer = await asyncio.open_connection(host, port)
                writer.close()
                await asyncio.to_thread(
                    ray.init,
                    address=self.spec.address,
                    namespace=self.namespace,
                    log_to_driver=False,
                    configure_logging=False,
                )
                self.listen()  # Ray has put its own in the place of ours
                return
            except (OSError, RuntimeError, ValueError, RayError) as error:
                why = f"Ray at {self.spec.address}: {reason(error) or type(error).__name__}"
                log.warning("%s", why)
                if not self.replicas:
                    told(ProcessEvent("failed", detail=why))
                await asyncio.sleep(LOOK_S)

    async def _find(self) -> None:
        """Follow the actors that there are; those that Ray does not know any more are lost."""
        names = set(await asyncio.to_thread(ray.util.list_named_actors))
        for name, one in self.replicas.items():
            if name not in names and one.actor is None and one.task is None:
                self._lose(one, "Ray knows it no more")
        for name in names:
            known = self.replicas.get(name)
            if known is not None and (known.actor is not None or known.task is not None):
                continue
            try:
                actor = await asyncio.to_thread(ray.get_actor, name, self.namespace)
                _, said = await asyncio.wait_for(actor.news.remote(-1), HOLD_S)
            except (RayError, ValueError, TimeoutError):
                continue  # it is just leaving, or will answer at another time
            if not said:
                self._work(self._end(actor))  # whoever made it was ended before it told it what to run
                continue
            status = msgspec.json.decode(said, type=ReplicaStatus)
            one = self.replicas[name] = Tracked(status, actor)
            one.task = self._work(self._follow(one))
            self.changed.set()

    async def stop_all(self) -> None:
        """The platform stops: so do its replicas."""
        self.stopping = True
        for one in self.replicas.values():
            self._stop(one, self.fence)
        end = asyncio.get_running_loop().time() + self.spec.drain_s
        while not all(one.ended for one in self.replicas.values()) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)
        await asyncio.gather(*(self._end(one.actor) for one in self.replicas.values() if one.actor is not None))
        self._path.unlink(missing_ok=True)


def row(node: Any) -> plan.Node:
    """A row of Ray's table of nodes."""
    return plan.Node(node["NodeID"], node["Alive"], dict(node.get("Resources", {})), dict(node.get("Labels") or {}))


def reason(error: BaseException) -> str:
    """What an error of Ray's says, in a line, for people."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(error, ActorDiedError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        wanted = [line for line in lines if "Error: " in line or line.startswith("The actor died because")]
        return (wanted or lines or [""])[-1][:300]
    return (str(cause).strip().splitlines() or [""])[0][:300]


async def serve(spec: RayAgentSpec, events: Events) -> None:
    """Run until told to stop; when the node has gone without a word, leave what runs."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    agent = Agent(spec)

    def told_to_stop() -> None:
        agent.stopping = True
        over.set()

    agent.listen = lambda: loop.add_signal_handler(signal.SIGTERM, told_to_stop)
    agent.listen()
    watch_input(loop, over.set)
    path = spec.listen.removeprefix("unix:")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    starting = [] if agent.replicas else [loop.create_task(announce(agent, events))]
    server = await asyncio.start_unix_server(agent.connected, path, limit=LINE_MAX)
    os.chmod(path, 0o600)
    telling = loop.create_task(agent.tell())
    running = loop.create_task(agent.run(events.send))
    if not starting:
        events.send(ProcessEvent("ready"))  # it can tell of what was there, whatever has become of Ray
    waiting = loop.create_task(over.wait())
    await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    if agent.stopping and ray.is_initialized():
        await agent.stop_all()
    server.close()
    for task in (telling, running, waiting, *starting):
        task.cancel()


async def announce(agent: Agent, events: Events) -> None:
    """Say that it is ready once Ray answers."""
    while agent.holding:
        await asyncio.sleep(0.05)
    events.send(ProcessEvent("ready"))


def main() -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = Events()
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=RayAgentSpec)
    asyncio.run(serve(spec, events))
    # Not by way of Ray's own end, which waits for a head that may be away; detached actors stay as they are.
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
