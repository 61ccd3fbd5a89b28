"""Jobs in the store: work on versions that takes longer than a request. So far: optimisations."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass

import msgspec
from sqlalchemy import Column, Connection, ForeignKey, Index, Integer, Row, String, Table, Text, insert, select, update

from headrace.core.database import metadata, now
from headrace.core.optimization import OptimizationCreate, OptimizationReport
from headrace.core.resources import JobState, Role
from headrace.core.states import step
from headrace.registry.states import JOB

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("model", Integer, ForeignKey("models.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("asked", Text, nullable=False),
    Column("progress", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text, nullable=True),
    Column("report", Text, nullable=True),
    Column("made", Integer, nullable=True),
    Column("role", String(16), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("ended_at", String(32), nullable=True),
    Index("ix_jobs_state", "state"),
    Index("ix_jobs_model_made", "model", "made"),
)
UNFINISHED: tuple[JobState, ...] = ("queued", "running")
_asked = msgspec.json.Decoder(OptimizationCreate).decode
_report = msgspec.json.Decoder(OptimizationReport).decode


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as stored. `made` is the version that came of it; `role` that of who asked."""

    id: str
    kind: str
    model: int
    version: int
    state: JobState
    asked: OptimizationCreate
    progress: str
    attempts: int
    error: str | None
    report: OptimizationReport | None
    made: int | None
    role: Role
    created_at: str
    created_by: str
    ended_at: str | None


def _job(row: Row[tuple[object, ...]]) -> JobRow:
    fields = row._asdict()
    fields["asked"] = _asked(fields["asked"])
    fields["report"] = None if fields["report"] is None else _report(fields["report"])
    return JobRow(**fields)


def add(connection: Connection, model: int, version: int, asked: OptimizationCreate, by: str, role: Role) -> str:
    """Queue an optimisation; returns its id."""
    id_ = f"job-{secrets.token_hex(6)}"
    connection.execute(
        insert(jobs).values(
            id=id_,
            kind="optimise",
            model=model,
            version=version,
            state="queued",
            asked=msgspec.json.encode(asked).decode(),
            progress="",
            attempts=0,
            role=role,
            created_at=now(),
            created_by=by,
        )
    )
    return id_


def find(connection: Connection, id_: str) -> JobRow | None:
    """A job by its id."""
    row = connection.execute(select(jobs).where(jobs.c.id == id_)).first()
    return None if row is None else _job(row)


def list_all(connection: Connection, states: Collection[JobState] | None = None) -> list[JobRow]:
    """Jobs, oldest first; in these states, or all."""
    query = select(jobs).order_by(jobs.c.created_at, jobs.c.id)
    if states is not None:
        query = query.where(jobs.c.state.in_(states))
    return [_job(row) for row in connection.execute(query)]


def that_made(connection: Connection, model: int, version: int) -> JobRow | None:
    """The job that a version came of."""
    row = connection.execute(select(jobs).where(jobs.c.model == model, jobs.c.made == version)).first()
    return None if row is None else _job(row)


def needed(connection: Connection) -> set[str]:
    """Digests of the files that unfinished jobs will read."""
    found = set()
    for job in list_all(connection, UNFINISHED):
        found |= {sample.digest for sample in (job.asked.data, job.asked.calibration) if sample is not None}
    return found


def begin(connection: Connection, job: JobRow) -> None:
    """It runs, or runs again after it was interrupted."""
    if job.state != "running":
        step(JOB, job.state, "running")
    _update(connection, job.id, state="running", attempts=job.attempts + 1, progress="")


def tell(connection: Connection, id_: str, progress: str) -> None:
    """Note how far it is."""
    _update(connection, id_, progress=progress)


def end(
    connection: Connection,
    job: JobRow,
    state: JobState,
    error: str | None = None,
    report: OptimizationReport | None = None,
    made: int | None = None,
) -> None:
    """It has ended. Raises IllegalTransition."""
    step(JOB, job.state, state)
    text = None if report is None else msgspec.json.encode(report).decode()
    _update(connection, job.id, state=state, error=error, report=text, made=made, ended_at=now(), progress="")


def _update(connection: Connection, id_: str, **values: object) -> None:
    connection.execute(update(jobs).where(jobs.c.id == id_).values(**values))
