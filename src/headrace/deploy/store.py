"""Desired deployments in the store."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    String,
    Table,
    Text,
    false,
    func,
    insert,
    select,
    update,
)

from headrace.core import revisions
from headrace.core.database import metadata, now
from headrace.core.resources import DeploymentMode, Placement
from headrace.deploy.demand import ANYWHERE, Terms

deployments = Table(
    "deployments",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("replicas", Integer, nullable=False),
    Column("threads", Integer, nullable=False),
    Column("traffic_on_ready", Float, nullable=True),
    Column("had_traffic", Boolean, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("memory_mb", Integer, nullable=True),
    Column("mode", String(16), nullable=False),
    Column("placed", String(16), nullable=False),
    Column("placed_why", Text, nullable=False),
    Column("tiers", String(400), nullable=False, server_default=""),
    Column("spot", Boolean, nullable=False, server_default=false()),
    Column("compute", Float, nullable=True),
)


@dataclass(frozen=True, slots=True)
class Desired:
    """A version that shall run; its fields are the table's columns, in order. `revision` counts changes: a failed
    deployment is tried again when it moves."""

    model: int
    version: int
    replicas: int
    threads: int
    traffic_on_ready: float | None
    had_traffic: bool
    revision: int
    created_at: str
    memory_mb: int | None = None
    mode: DeploymentMode = "dedicated"
    placed: Placement = "dedicated"
    placed_why: str = ""
    tiers: str = ""
    """Names with commas between them."""
    spot: bool = False
    compute: float | None = None

    @property
    def replica_memory_mb(self) -> int | None:
        """Most memory of a replica of its own; that of a shared one is the model's."""
        return None if self.mode == "shared" else self.memory_mb

    @property
    def terms(self) -> Terms:
        """How it wants to be placed."""
        return Terms(tuple(self.tiers.split(",")) if self.tiers else (), self.spot, self.replicas)

    def waiting_share(self, routed: bool) -> float | None:
        """The percent that it takes once ready, of a model that is `routed` already or not: what was asked, or for the
        first everything; None where none waits."""
        if self.traffic_on_ready is None and not routed and not self.had_traffic:
            return 100.0
        return self.traffic_on_ready


def list_all(connection: Connection, of: Collection[int] | None = None) -> list[Desired]:
    """Desired deployments by model and version; of these models (at most `KEYS_MAX`), or of all."""
    query = select(deployments).order_by(deployments.c.model, deployments.c.version)
    return [
        Desired(*row) for row in connection.execute(query if of is None else query.where(deployments.c.model.in_(of)))
    ]


def replicas_wanted(connection: Connection) -> int:
    """By all deployments together that have replicas of their own."""
    query = select(func.sum(deployments.c.replicas)).where(deployments.c.placed != "shared")
    found: int | None = connection.execute(query).scalar()
    return found or 0


def find(connection: Connection, model: int, version: int) -> Desired | None:
    """One deployment."""
    key = (deployments.c.model == model, deployments.c.version == version)
    row = connection.execute(select(deployments).where(*key)).first()
    return None if row is None else Desired(*row)


def create(
    connection: Connection,
    model: int,
    version: int,
    replicas: int,
    threads: int,
    traffic_on_ready: float | None,
    memory_mb: int | None = None,
    mode: DeploymentMode = "dedicated",
    terms: Terms = ANYWHERE,
    compute: float | None = None,
) -> None:
    """Want a version to run; one that is wanted already takes the new numbers. One that is `auto` anew starts out
    shared; where it is so already, it stays where it is."""
    before = find(connection, model, version)
    values: dict[str, object] = {
        "replicas": replicas,
        "threads": threads,
        "traffic_on_ready": traffic_on_ready,
        "memory_mb": memory_mb,
    }
    values |= {"tiers": ",".join(terms.tiers), "spot": terms.spot, "compute": compute}
    if before is None or before.mode != mode or before.placed == "isolated":
        values |= {"mode": mode, "placed": "dedicated" if mode == "dedicated" else "shared", "placed_why": ""}
    if before is None:
        connection.execute(
            insert(deployments).values(
                model=model, version=version, had_traffic=False, revision=1, created_at=now(), **values
            )
        )
        revisions.touch(connection, "model", model)
    else:
        _update(connection, model, version, revision=before.revision + 1, **values)


def scale(connection: Connection, before: Desired, replicas: int) -> None:
    """Want another number of replicas."""
    _update(connection, before.model, before.version, replicas=replicas, revision=before.revision + 1)


def place(connection: Connection, before: Desired, placed: Placement, why: str) -> None:
    """Have a version served elsewhere."""
    _update(connection, before.model, before.version, placed=placed, placed_why=why)


def traffic_done(connection: Connection, model: int, version: int) -> None:
    """The share that waited for readiness was given."""
    _update(connection, model, version, traffic_on_ready=None)


def mark_traffic(connection: Connection, model: int, versions: set[int]) -> None:
    """These versions have had traffic: once out of every policy they may be stopped."""
    of = (deployments.c.model == model, deployments.c.version.in_(versions))
    connection.execute(update(deployments).where(*of).values(had_traffic=True))
    revisions.touch(connection, "model", model)


def remove(connection: Connection, model: int, version: int) -> None:
    """Want a version to run no more."""
    connection.execute(deployments.delete().where(deployments.c.model == model, deployments.c.version == version))
    revisions.touch(connection, "model", model)


def _update(connection: Connection, model: int, version: int, **values: object) -> None:
    key = (deployments.c.model == model, deployments.c.version == version)
    connection.execute(update(deployments).where(*key).values(**values))
    revisions.touch(connection, "model", model)
