"""Who leads: of several control planes on one database, one runs the loops.

A lease is a row that its holder renews and that ends by itself; its time is the database's, which all share. With each
change of holder goes a **fencing token** that grows: what a leader does carries it and is refused where a higher one
was seen, in the transaction that writes (`check`) and by the node agent. So a leader that was paused for longer than
its lease does nothing twice, whatever it believes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, Float, String, Table, Text, extract, func, insert, select, update

from headrace.core import revisions
from headrace.core.database import metadata
from headrace.core.errors import Unavailable

leases = Table(
    "leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("url", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("until", Float, nullable=False),
)
LEADER = "leader"
LEASE_S = 5.0
"""How long a lease lasts that is not renewed."""


class Deposed(Unavailable):
    """Another leads by now."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who leads, where its API is, its fencing token, and for how long yet (seconds, negative when it is over)."""

    holder: str
    url: str
    token: int
    left_s: float


def current(connection: Connection) -> Lease | None:
    """The lease as it stands; None before the first."""
    row = connection.execute(select(leases).where(leases.c.name == LEADER)).first()
    return None if row is None else Lease(row.holder, row.url, row.token, row.until - _clock(connection))


def take(connection: Connection, holder: str, url: str, *, alone: bool = False) -> Lease:
    """Take the lease under a new token where it is free; the lease as it stands then.

    Args:
        connection: in a transaction that may write.
        holder: who asks, at its start; a lease under that name is of a process before it, and over.
        url: of its API.
        alone: there cannot be another (the database is embedded): whatever lease there is, is over.
    """
    before = current(connection)
    if before is not None and before.holder != holder and before.left_s > 0 and not alone:
        return before
    token = revisions.take(connection, "fence")
    values = {"holder": holder, "url": url, "token": token, "until": _clock(connection) + LEASE_S}
    if before is None:
        connection.execute(insert(leases).values(name=LEADER, **values))
    else:
        connection.execute(update(leases).where(leases.c.name == LEADER).values(values))
    return Lease(holder, url, token, LEASE_S)


def renew(connection: Connection, token: int) -> None:
    """Have one's lease last from now on. Raises Deposed where another has taken it."""
    check(connection, token)
    connection.execute(update(leases).where(leases.c.name == LEADER).values(until=_clock(connection) + LEASE_S))


def give_up(connection: Connection, token: int) -> None:
    """End one's lease now: another need not wait for it."""
    connection.execute(update(leases).where(leases.c.name == LEADER, leases.c.token == token).values(until=0.0))


def check(connection: Connection, token: int) -> None:
    """Raises Deposed unless `token` is of the lease in force; for the transaction that does a leader's work."""
    found = connection.execute(select(leases.c.token).where(leases.c.name == LEADER)).scalar()
    if found != token:
        raise Deposed(f"another control plane leads by now: token {found}, this one had {token}")


def _clock(connection: Connection) -> float:
    """Seconds since 1970 by the database's clock."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(select(extract("epoch", func.clock_timestamp()))).scalar_one())
    return float(connection.execute(select((func.julianday("now") - 2440587.5) * 86400.0)).scalar_one())
