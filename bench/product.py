"""The platform as the benches use it: ``headrace up`` in a folder of its own, spoken to by its REST API."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from bench.harness import ALL, BACK, FRONT, ROOT, fail, pin, process, rss_mb, wait_until

UNLIMITED = {"rate_per_s": 1e9, "burst": 1e9, "max_in_flight": 1_000_000}
"""A quota that is checked and never reached."""


@dataclass
class Product:
    """A running platform."""

    folder: Path
    client: httpx.Client
    http_port: int
    node_pid: int

    # -------------------------------------------------------------------------------------------- API
    def call(self, method: str, path: str, body: object = None, *, timeout_s: float = 60.0) -> Any:
        """A call of the control-plane API; its JSON. Ends the bench on an error answer."""
        reply = self.client.request(method, path, json=body, timeout=timeout_s)
        if reply.status_code >= 400:
            fail(f"{method} {path}: {reply.status_code} {reply.text}")
        return reply.json()

    def push(self, model: str, artifact: Path, **version: Any) -> int:
        """Register a version; its number."""
        return self.register(model, self.put(artifact), artifact.name, **version)

    def put(self, artifact: Path) -> str:
        """Store an artifact; its digest."""
        data = artifact.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        put = self.client.put(f"/api/v1/artifacts/{digest}", content=data, timeout=120.0)
        if put.status_code >= 400:
            fail(f"artifact: {put.status_code} {put.text}")
        return digest

    def register(self, model: str, digest: str, file_name: str, **version: Any) -> int:
        """Register a version of an artifact that was put; its number."""
        body = {"digest": digest, "file_name": file_name, **version}
        return int(self.call("POST", f"/api/v1/models/{model}/versions", body)["result"]["version"])

    def deploy(self, model: str, version: int, replicas: int = 1, threads: int = 1, ready: bool = True) -> None:
        """Deploy a version and, unless told otherwise, wait until its replicas are ready."""
        body = {"model": model, "version": version, "replicas": replicas, "threads": threads}
        self.call("POST", "/api/v1/deployments", body)
        if ready:
            self.wait_ready(model, version, replicas)

    def deployment(self, model: str, version: int) -> Any:
        """A deployment as it is."""
        return self.call("GET", f"/api/v1/deployments/{model}@{version}")

    def wait_ready(self, model: str, version: int, replicas: int) -> None:
        """Until exactly so many replicas are ready."""

        def ready() -> bool:
            found = self.deployment(model, version)
            if found["state"] == "failed":
                fail(f"{model}@{version}: {found['detail']}")
            return bool(found["ready"] == replicas)

        wait_until(ready, f"{model}@{version} with {replicas} replicas")

    def wait_gone(self, model: str, version: int, pid: int) -> None:
        """Until the platform has noticed that a replica's process is no more."""

        def gone() -> bool:
            instances = self.deployment(model, version)["instances"]
            return all(i["pid"] != pid or i["state"] != "ready" for i in instances)

        wait_until(gone, f"process {pid} to be missed")

    def split(self, model: str, weights: dict[int, float]) -> Any:
        """Set the traffic; the change, with `effective_ms`."""
        body = {"weights": {str(version): percent for version, percent in weights.items()}}
        return self.call("PUT", f"/api/v1/models/{model}/traffic", body)["change"]

    def tenant_keys(self, count: int, model: str) -> list[str]:
        """So many tenants that may call the model; a key of each."""
        keys = []
        for k in range(count):
            self.call("POST", "/api/v1/tenants", {"name": f"team-{k}", "quota": UNLIMITED})
            made = self.call("POST", "/api/v1/keys", {"tenant": f"team-{k}", "role": "viewer"})
            keys.append(made["result"]["text"])
            self.call("PUT", f"/api/v1/models/{model}/grants/team-{k}")
        return keys

    # -------------------------------------------------------------------------------------------- processes
    def node(self) -> dict[str, Any]:
        """``node.json``: URLs and process ids."""
        return dict(json.loads((self.folder / "node.json").read_text()))

    def router_pid(self) -> int:
        """The HTTP router's process."""
        return int(self.node()["router_pids"][0])

    def replica_pids(self) -> list[int]:
        """The processes of all replicas that are ready."""
        page = self.call("GET", "/api/v1/deployments")
        return [i["pid"] for d in page["items"] for i in d["instances"] if i["state"] == "ready"]

    def place(self, replicas: set[int] = BACK, router: set[int] = FRONT) -> None:
        """Pin the router to the front's core and the replicas to the model's, as the prototype's processes are."""
        pin(self.router_pid(), router)
        for pid in self.replica_pids():
            pin(pid, replicas)

    def router_rss_mb(self) -> float:
        """Resident memory of the HTTP router."""
        return rss_mb(self.router_pid())

    def kill_control_plane(self) -> None:
        """kill -9; returns when another one answers."""
        old = self.node()["control_pid"]
        os.kill(old, signal.SIGKILL)

        def back() -> bool:
            with contextlib.suppress(httpx.HTTPError, OSError, ValueError):
                return self.node()["control_pid"] != old and self.client.get("/api/v1/status").status_code == 200
            return False

        wait_until(back, "the control plane to come back")


@contextlib.contextmanager
def product(folder: Path, *, cores: set[int] = ALL, settings: Mapping[str, object] | None = None) -> Iterator[Product]:
    """Start a platform, with unlimited quota for its first tenant, and end it with the block."""
    data = folder / "data"
    data.mkdir(parents=True)
    ports = ["--http-port", "0", "--grpc-port", "-1", "--control-port", "0", "--routers", "1"]
    command = [sys.executable, "-m", "headrace.cli.main", "up", "--data", str(data), *ports]
    log = folder / "up.log"
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {f"HEADRACE_{name.upper()}": str(value) for name, value in (settings or {}).items()}
    environment["PYTHONPATH"] = path
    with process(command, cores=cores, log=log, environment=environment, stop_s=40.0) as node:

        def up() -> bool:
            if node.poll() is not None:
                fail(f"headrace up ended with {node.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
            return "headrace is up" in log.read_text(errors="replace")

        wait_until(up, f"headrace up ({log.read_text(errors='replace')[-500:]})")
        info = json.loads((data / "node.json").read_text())
        key = tomllib.loads((data / "credentials.toml").read_text())["api_key"]
        with httpx.Client(base_url=info["control_url"], headers={"authorization": f"Bearer {key}"}) as client:
            running = Product(data, client, urlsplit(info["http_url"]).port or 0, node.pid)
            running.call("PATCH", "/api/v1/tenants/default", UNLIMITED)
            yield running
