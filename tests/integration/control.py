"""The control plane's API as a real application over a real database; only the fleet is a list that a test sets."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from sqlalchemy import Connection, select

from headrace.controlplane import accounts
from headrace.controlplane.app import create_app
from headrace.controlplane.artifacts import Artifacts
from headrace.controlplane.link import Hub
from headrace.controlplane.metrics import Metrics
from headrace.controlplane.platform import Platform
from headrace.controlplane.publisher import Publisher
from headrace.controlplane.store import Store, open_store
from headrace.core.database import metadata
from headrace.core.resources import DeviceStatus, FleetStatus, PlacementPlan, Problem
from headrace.core.specs import ReplicaStatus
from headrace.deploy.reconcile import Standing, Target
from headrace.registry.examiner import Examiner
from headrace.registry.folder import FolderStore
from headrace.registry.uploads import Uploads
from tests.models import Artifact

ARTIFACT_MAX = 4 << 20


class Fleet:
    """Replicas that a test says are there."""

    def __init__(self) -> None:
        self.standings: dict[Target, Standing] = {}
        self.wakes = 0

    def statuses(self) -> tuple[ReplicaStatus, ...]:
        return ()

    def devices(self) -> list[DeviceStatus]:
        return [DeviceStatus("here/cpu", "here", "cpu", False, 8192, 0.0, 2.0, 0.0, 0, 0.08)]

    def placement(self) -> PlacementPlan:
        return PlacementPlan("off", None, 0.0, 0.0, 0.0, [])

    def summary(self) -> FleetStatus:
        return FleetStatus()

    def wake(self) -> None:
        self.wakes += 1

    def ready(self, model: str, version: int) -> None:
        self.standings[model, version] = Standing("ready", 1, "")


async def no_command(command: object) -> Any:
    raise AssertionError(command)


class Control:
    """A running control plane, and a client that holds its admin key."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.runner = asyncio.Runner()
        self.folder = folder
        self.store = Store(open_store(url or f"sqlite:///{folder / 'headrace.db'}"))
        self.credentials = folder / "credentials.toml"
        self.run(self.store.run(lambda c: accounts.bootstrap(c, self.credentials, {"url": "http://127.0.0.1:1"})))
        self.key = self.credentials.read_text().split('api_key = "')[1].split('"')[0]
        self.fleet = Fleet()
        self.examiner = Examiner()
        metrics = Metrics(str, self.fleet.statuses, lambda: 1)
        hub = Hub(metrics.take, no_command, lambda: None)
        metrics.hub = hub
        self.publisher = Publisher(self.store, hub, self.fleet, "")
        uploads = Uploads(folder / "artifacts" / "incoming", ARTIFACT_MAX)
        self.artifacts = Artifacts(self.store, FolderStore(folder / "artifacts"), uploads, 3600.0, None)
        self.platform = Platform(
            self.store,
            self.artifacts,
            self.examiner,
            self.publisher,
            self.fleet,
            metrics,
            lambda: self.fleet.standings,
        )
        self.app = create_app(self.platform, ARTIFACT_MAX)
        transport = httpx.ASGITransport(self.app)  # type: ignore[arg-type]
        self.client = httpx.AsyncClient(transport=transport, base_url="http://control")

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def call(self, method: str, path: str, json: Any = None, *, key: str | None = "", **options: Any) -> httpx.Response:
        """A request with the admin's key, another's, or none (None)."""
        headers = options.pop("headers", {})
        if key is not None:
            headers["authorization"] = f"Bearer {key or self.key}"
        url = path if path in ("/metrics", "/healthz", "/openapi.json") else f"/api/v1{path}"
        if json is not None:
            options["content"] = msgspec.json.encode(json)
            headers["content-type"] = "application/json"
        response: httpx.Response = self.run(self.client.request(method, url, headers=headers, **options))
        return response

    def do(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        """A request that must succeed; its decoded reply."""
        response = self.call(method, path, json, **options)
        assert response.is_success, response.text
        return response.json()

    def refused(self, method: str, path: str, json: Any = None, **options: Any) -> Problem:
        """A request that must be refused with a problem document."""
        response = self.call(method, path, json, **options)
        assert response.headers["content-type"] == "application/problem+json", response.text
        problem = msgspec.json.decode(response.content, type=Problem)
        assert problem.status == response.status_code
        return problem

    def key_of(self, role: str, tenant: str = "default") -> str:
        text: str = self.do("POST", "/keys", {"role": role, "tenant": tenant})["result"]["text"]
        return text

    def put(self, content: bytes, **options: Any) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.do("PUT", f"/artifacts/{digest}", content=content, **options)
        return digest

    def push(self, name: str, artifact: Artifact, **options: Any) -> Any:
        """Register a version; the outcome."""
        body: dict[str, Any] = {"digest": self.put(artifact.content), "file_name": artifact.file_name}
        body |= {"engine": artifact.engine, "options": artifact.options, "signature": artifact.signature}
        return self.do("POST", f"/models/{name}/versions", body, **options)

    def stored(self) -> bytes:
        """All that the database holds: its rows, and over SQLite its files too."""

        def rows(c: Connection) -> bytes:
            return b"".join(repr(row).encode() for table in metadata.sorted_tables for row in c.execute(select(table)))

        found: bytes = self.run(self.store.read(rows))
        return found + b"".join(path.read_bytes() for path in self.folder.glob("headrace.db*"))

    def close(self) -> None:
        self.run(self.client.aclose())
        self.run(self.examiner.close())
        self.store.close()
        self.runner.close()


@contextmanager
def control(folder: Path, url: str = "") -> Iterator[Control]:
    """A control plane on a folder and a database (SQLite in the folder where none is named), closed at the end."""
    one = Control(folder, url)
    try:
        yield one
    finally:
        one.close()
