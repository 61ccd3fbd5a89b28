"""A real Ray cluster of several nodes on loopback addresses: 127.0.0.2 is the head, .3 and on are the others.

Of what runs on this machine it ends only what it started: every process of a node carries the cluster's name in its
environment.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

MARK = "HEADRACE_TEST_RAY"
START_S = 90.0


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Nodes by number: 0 is the head."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.name = secrets.token_hex(6)
        self.port = free_port("127.0.0.2")
        self.address = f"127.0.0.2:{self.port}"
        self._environment = {**os.environ, **(environment or {}), "RAY_USAGE_STATS_ENABLED": "0"}
        self.nodes: set[int] = set()

    def host(self, number: int) -> str:
        return f"127.0.0.{number + 2}"

    def start(self, number: int, cpus: int = 4, gpus: int = 0, labels: str = "") -> None:
        """Start a node, and wait until it has joined."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--num-cpus={cpus}"]
        command += [f"--node-ip-address={self.host(number)}", f"--num-gpus={gpus}", "--object-store-memory=80000000"]
        command += ["--head", f"--port={self.port}", "--include-dashboard=false"] if number == 0 else []
        command += [f"--address={self.address}"] if number else []
        command += [f"--labels={labels}"] if labels else []
        # Unix sockets have short paths, so not in pytest's folder.
        command += [f"--temp-dir=/tmp/hr-{self.name}"] if number == 0 else []
        environment = {**self._environment, MARK: f"{self.name}-{number}"}
        log = self.folder / f"ray-{number}.log"
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                timeout=START_S,
                check=False,
            )
        self.nodes.add(number)
        if done.returncode:
            self.stop()
            raise AssertionError(log.read_text(errors="replace"))

    def processes(self, number: int, named: str = "") -> list[int]:
        """What runs of a node, replicas included."""
        mark = f"{MARK}={self.name}-{number}".encode()
        found = []
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if path.name.isdigit() and mark in (path / "environ").read_bytes().split(b"\0"):
                    command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    if named in command:
                        found.append(int(path.name))
        return found

    def kill(self, number: int, named: str = "") -> None:
        """End a node at once as a machine does that loses its power; or only its processes of this name."""
        for _ in range(3):  # what was just being started too
            for pid in self.processes(number, named):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if not named:
            self.nodes.discard(number)

    def stop(self) -> None:
        """End everything."""
        for number in sorted(self.nodes, reverse=True):
            self.kill(number)
        subprocess.run(["rm", "-rf", f"/tmp/hr-{self.name}"], check=False)
