"""The audit of every mutation, and the memory of idempotency keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Column, Connection, LargeBinary, Row, String, Table, Text, func, insert, select

from headrace.controlplane.chain import GENESIS, Link, digest
from headrace.core import revisions
from headrace.core.database import Number, metadata, now
from headrace.core.errors import Conflict
from headrace.core.resources import Change

changes = Table(
    "changes",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("entity", String(200), nullable=False, index=True),
    Column("before", Text, nullable=True),
    Column("after", Text, nullable=True),
    Column("reason", Text, nullable=True),
    Column("undo", Text, nullable=True),
    Column("hash", String(64), nullable=False),
)
idempotency = Table(
    "idempotency",
    metadata,
    Column("actor", String(64), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("request", LargeBinary, nullable=False),
    Column("change", Number, nullable=False),
    Column("at", String(32), nullable=False, index=True),
    Column("answer", LargeBinary, nullable=True),
)

WRITTEN = "headrace.change"
"""Key of a connection's `info`: id and hash of the latest row, for the log once it is committed."""
IDEMPOTENCY_S = 24 * 3600.0
"""How long an idempotency key is remembered."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a mutation did, for the audit."""

    action: str
    tenant: str
    entity: str
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    undo: str | None = None
    changed: bool = True
    """False where everything was so already: the audit gets no row."""


PLATFORM = "platform"
"""The actor where nobody asked."""


def _text(value: dict[str, Any] | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def known(connection: Connection, record: Record) -> bool:
    """Whether a record with the same action, entity and outcome was written before."""
    same = (changes.c.entity == record.entity, changes.c.tenant == record.tenant, changes.c.action == record.action)
    query = select(changes.c.id).where(*same, changes.c.after == _text(record.after))
    return connection.execute(query.limit(1)).first() is not None


def append(connection: Connection, actor: str, record: Record, reason: str | None) -> int:
    """Write a row at the end of the chain; returns its id. The ids are drawn from a counter whose row the transaction
    holds until it commits: so rows stand in order without gaps, also where several processes write."""
    link = Link(
        revisions.take(connection, "change"),
        now(),
        actor,
        record.action,
        record.tenant,
        record.entity,
        _text(record.before),
        _text(record.after),
        reason,
        record.undo,
    )
    previous = connection.execute(select(changes.c.hash).where(changes.c.id == link.id - 1)).scalar()
    hash_ = digest(previous or GENESIS, link)
    connection.execute(insert(changes).values(**{name: getattr(link, name) for name in Link.__slots__}, hash=hash_))
    connection.info[WRITTEN] = link.id, hash_
    return link.id


@dataclass(frozen=True, slots=True)
class Answered:
    """What an idempotency key did: its change, and the answer; None where the answer carried a secret."""

    change: int
    answer: bytes | None


def replayed(connection: Connection, actor: str, key: str, request: bytes) -> Answered | None:
    """What this idempotency key did before; None when it is new. Raises Conflict when it came with another request.

    Args:
        connection: in the transaction of the mutation.
        actor: whose key it is; others may use the same.
        key: the Idempotency-Key.
        request: digest of the whole request.
    """
    row = connection.execute(select(idempotency).where(idempotency.c.actor == actor, idempotency.c.key == key)).first()
    if row is None:
        return None
    if row.request != request:
        raise Conflict(
            f"idempotency-key: {key!r} came with another request before",
            field="idempotency-key",
            hint="send the same request again, or a new one under a new key",
        )
    return Answered(row.change, row.answer)


def remember(connection: Connection, actor: str, key: str, request: bytes, change: int, answer: bytes | None) -> None:
    """Keep for a day what an idempotency key did and what it is answered."""
    connection.execute(idempotency.delete().where(idempotency.c.at < now(-IDEMPOTENCY_S)))
    connection.execute(
        insert(idempotency).values(actor=actor, key=key, request=request, change=change, at=now(), answer=answer)
    )


def complete(connection: Connection, actor: str, key: str, answer: bytes) -> None:
    """Keep the answer as it is given, with how far the routers have come."""
    of = (idempotency.c.actor == actor, idempotency.c.key == key)
    connection.execute(idempotency.update().where(*of).values(answer=answer))


def last(connection: Connection, tenant: str, entity: str, action: str | None = None) -> int:
    """The latest change of an entity, of one action where it is named; 0 where there is none."""
    query = select(func.max(changes.c.id)).where(changes.c.tenant == tenant, changes.c.entity == entity)
    if action is not None:
        query = query.where(changes.c.action == action)
    return int(connection.execute(query).scalar() or 0)


def find(connection: Connection, change: int) -> Change | None:
    """A change by its id."""
    row = connection.execute(select(changes).where(changes.c.id == change)).first()
    return None if row is None else _change(row)


def page(
    connection: Connection,
    tenant: str | None,
    entity: str | None,
    since: str | None,
    before: int | None,
    limit: int,
    kind: str | None = None,
) -> list[Change]:
    """Changes, newest first; `before` is the cursor. `entity` also finds its versions (``churn`` finds ``churn@4``);
    `kind` is what the action begins with (``traffic``)."""
    query = select(changes).order_by(changes.c.id.desc()).limit(limit)
    if tenant is not None:
        query = query.where(changes.c.tenant == tenant)
    if entity is not None:
        query = query.where((changes.c.entity == entity) | changes.c.entity.startswith(f"{entity}@", autoescape=True))
    if kind is not None:
        query = query.where(changes.c.action.startswith(f"{kind}.", autoescape=True))
    if since is not None:
        query = query.where(changes.c.at >= since)
    if before is not None:
        query = query.where(changes.c.id < before)

    return [_change(row) for row in connection.execute(query)]


def _change(row: Row[tuple[object, ...]]) -> Change:
    fields = row._asdict()
    for name in ("before", "after"):
        fields[name] = None if fields[name] is None else msgspec.json.decode(fields[name])
    return Change(**fields)


def reserve_epochs(connection: Connection, count: int) -> int:
    """Take `count` snapshot epochs that nobody had; returns the first."""
    return revisions.take(connection, "epoch", count)
