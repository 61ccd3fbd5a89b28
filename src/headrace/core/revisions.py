"""What has changed in the store since one looked: every tenant, key and model has a revision, a number that grows with
each change and is written in the same transaction as the change.

The revisions are drawn from one counter, whose row the transaction holds until it commits: so they become visible in
order, also where several processes write, and whoever has seen revision n has seen all below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Column, Connection, String, Table, insert, select, update

from headrace.core.database import Number, metadata

counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Number, nullable=False),
)
revisions = Table(
    "revisions",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("revision", Number, nullable=False, unique=True),
)
Kind = Literal["tenant", "key", "model"]


@dataclass(frozen=True, slots=True)
class Touched:
    """A tenant (by its index), key or model (by its number) and the revision of its latest change. A model's is moved
    by its settings, grants, policies, overrides and deployments."""

    kind: Kind
    id: str
    revision: int


def take(connection: Connection, counter: str, count: int = 1) -> int:
    """Take the next `count` numbers of a counter; returns the first. No number is given twice."""
    step = update(counters).where(counters.c.name == counter).values(value=counters.c.value + count)
    value = connection.execute(step.returning(counters.c.value)).scalar()
    if value is None:
        connection.execute(insert(counters).values(name=counter, value=1 + count))
        return 1
    return int(value) - count


def reach(connection: Connection, counter: str, number: int) -> None:
    """Have a counter stand at `number` at least, as if all up to it had been taken."""
    before = last(connection, counter)
    if before < number:
        take(connection, counter, number - before)


def last(connection: Connection, counter: str) -> int:
    """The last number that was taken of a counter; 0 where none was."""
    value = connection.execute(select(counters.c.value).where(counters.c.name == counter)).scalar()
    return 0 if value is None else int(value) - 1


def touch(connection: Connection, kind: Kind, id_: str | int) -> None:
    """Note that this has changed, in the transaction that changes it."""
    revision = take(connection, "revision")
    key = (revisions.c.kind == kind, revisions.c.id == str(id_))
    if not connection.execute(update(revisions).where(*key).values(revision=revision)).rowcount:
        connection.execute(insert(revisions).values(kind=kind, id=str(id_), revision=revision))


def since(connection: Connection, revision: int) -> list[Touched]:
    """All that has changed after `revision`, in that order."""
    query = select(revisions).where(revisions.c.revision > revision).order_by(revisions.c.revision)
    return [Touched(*row) for row in connection.execute(query)]
