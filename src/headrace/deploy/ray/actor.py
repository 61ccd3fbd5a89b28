"""One replica on a node of Ray's: the actor that looks after it.

It is a node agent (`deploy.node`) with a single replica and nothing else: pulls, memory limits, watchdog and kills are
as on any machine. The replica is a process of its own and outlives the actor: when Ray ends that, because the machine's
part of Ray or Ray's head has gone, whoever is served by the replica notices nothing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Literal

import msgspec
import ray

from headrace.core.config import Settings
from headrace.core.specs import ReplicaSpec, ServedPart, ServedVersion
from headrace.deploy import states
from headrace.deploy.node import Node
from headrace.deploy.ray.wire import Launch
from headrace.deploy.wire import NodeCommand

NEWS_S = 20.0
"""How long a question for news waits for some."""
FORSAKEN_S = 600.0
"""An actor whose replica has ended, or never began, and that nobody asks for so long, leaves."""
NO_PORTS = {"http": -1, "grpc": -1, "control": -1}


class ReplicaActor:
    """Created as a detached actor that Ray does not start again; see `Agent` for who calls it."""

    def __init__(self) -> None:
        self._node: Node | None = None
        self._launch: Launch | None = None
        self._version = 0
        self._news = asyncio.Condition()
        self._asked = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, said: bytes) -> None:
        """Start the replica of a `Launch`; a second time changes nothing."""
        if self._launch is not None:
            return
        self._launch = launch = msgspec.json.decode(said, type=Launch)
        site, spec = launch.site, launch.spec
        os.environ["HEADRACE_LOG_LEVEL"] = site.log_level
        folder = Path(site.folder)
        (folder / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        # One replica: there is nothing to share a zygote with, and the folder is all actors' of the node.
        settings = Settings(
            data=str(folder),
            drain_s=spec.drain_s,
            cache_max_bytes=site.cache_max_bytes,
            zygotes="off",
            forms_max_bytes=0,
        )
        self._node = Node(settings, folder, folder, NO_PORTS, site.store)
        loop = asyncio.get_running_loop()
        self._asked = loop.time()
        self._tasks = [loop.create_task(self._tell()), loop.create_task(self._leave_forsaken())]
        host = ray.util.get_node_ip_address()
        if missing := unseen(spec):
            raise FileNotFoundError(
                f"node {host} does not see {missing}: keep artifacts in S3, or put the data folder on a disk that all "
                "nodes mount at the same path"
            )
        here = msgspec.structs.replace(
            spec, address=f"tcp:{host}:0", control=site.reports, key=launch.key, unlinked_s=site.unlinked_s
        )
        self._command("start", launch.token, here)

    async def stop(self, token: int) -> None:
        """Drain and stop the replica."""
        self._command("stop", token)

    async def news(self, seen: int) -> tuple[int, bytes]:
        """The version after `seen` of the replica's status (JSON; empty before `begin`); waits a while for one."""
        self._asked = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(NEWS_S), self._news:
                await self._news.wait_for(lambda: self._version != seen or self._node is None)
        except TimeoutError:
            pass
        return self._version, self._status()

    def _command(self, verb: Literal["start", "stop"], token: int, spec: ReplicaSpec | None = None) -> None:
        """By its token, a control plane that leads no more is heard by no actor that its successor has spoken to."""
        if self._node is not None and self._launch is not None and token >= self._node.fence:
            self._node.fence = token
            self._node.command(NodeCommand(verb, self._launch.spec.id, spec, token))

    def _status(self) -> bytes:
        if self._node is None or self._launch is None:
            return b""
        record = self._node.replicas.get(self._launch.spec.id)
        if record is None:
            return b""
        # As it was asked for: the key stays here.
        return msgspec.json.encode(msgspec.structs.replace(record.status(), spec=self._launch.spec))

    async def _tell(self) -> None:
        assert self._node is not None
        while True:
            await self._node.changed.wait()
            self._node.changed.clear()
            async with self._news:
                self._version += 1
                self._news.notify_all()

    async def _leave_forsaken(self) -> None:
        assert self._node is not None
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FORSAKEN_S / 10)
            ended = all(record.state in states.ENDED for record in self._node.replicas.values())
            if ended and loop.time() - self._asked > FORSAKEN_S:
                os._exit(0)


def unseen(spec: ReplicaSpec) -> str:
    """The first artifact that lies at a path and is not there; empty where all are."""
    served: list[ServedVersion | ServedPart] = [*spec.versions, *(p for v in spec.versions for p in v.parts)]
    return next((one.artifact for one in served if one.artifact and not Path(one.artifact).exists()), "")
