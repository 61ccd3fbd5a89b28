"""The control plane's database: one metadata that each part adds its tables to, and how a connection is made.

Two databases, one rule: **whoever may write has the store to itself until it commits**. Use cases read and then write
what follows (the next version, the next tenant's index, the audit), so that is what makes them right; and rows become
visible in the order of their numbers, so that a reader which has seen revision n has seen all below it. All that the
two do differently is in this module.

- SQLite, embedded: write-ahead log, every commit synced to disk, `BEGIN IMMEDIATE`.
- PostgreSQL: an advisory lock, taken before the transaction's first look at the data and let go after its commit can be
  seen. The isolation is READ COMMITTED on purpose: a snapshot is then taken by each statement and so after the lock,
  where a stricter one would take it before, and see the past. Nothing conflicts, so nothing is tried again.

Who only reads says so, waits for nobody and sees one moment of the store.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import BigInteger, Connection, Engine, Integer, MetaData, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection

from headrace.core.errors import InvalidInput
from headrace.core.secret import reveal

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
KEYS_MAX = 500
"""Most keys in one query: databases limit its parameters."""
Number = BigInteger().with_variant(Integer(), "sqlite")
"""Of what is counted without end; SQLite's integers have 64 bits, and only by that name do they number rows."""
POSTGRES = "postgresql+psycopg"
WRITER_LOCK = 0x6865616472616365
"""The advisory lock of whoever may write: "headrace" in ASCII."""
POOL_SIZE = 4
"""Connections of a control plane to PostgreSQL."""
CONNECT_S = 5
STATEMENT_S = 10
"""Longest that a statement may take, waiting for the lock included."""
IDLE_S = 4
"""A writer that says nothing for so long has been stopped, or its machine has gone: the database ends its transaction,
so that it holds up nobody."""


def connect(url: str) -> Engine:
    """An engine for ``sqlite:///path`` or ``postgresql+psycopg://user:password@host/database``; the password may be a
    reference (`core.secret`). Raises InvalidInput for a URL that makes no sense."""
    made = make_url(url)
    return _postgres(made) if made.drivername == POSTGRES else _sqlite(made)


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _: object) -> None:
        # The driver must not begin transactions by itself: it would take the read lock first.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if _reads(connection) else "BEGIN IMMEDIATE")

    return engine


def _postgres(url: URL) -> Engine:
    if url.password is not None:
        url = url.set(password=reveal(str(url.password), "database"))
    limits = {
        "statement_timeout": STATEMENT_S * 1000,
        "idle_in_transaction_session_timeout": IDLE_S * 1000,
        "synchronous_commit": "on",
    }
    defaults: dict[str, object] = {
        "application_name": "headrace",
        "connect_timeout": CONNECT_S,
        "tcp_user_timeout": STATEMENT_S * 1000,
        "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
    }
    try:
        engine = create_engine(
            url,
            isolation_level="READ COMMITTED",
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=STATEMENT_S,
            pool_pre_ping=True,  # the server may have been started anew since
            connect_args={name: value for name, value in defaults.items() if name not in url.query},
        )
    except ModuleNotFoundError:
        hint = "pip install 'headrace[postgres]'"
        raise InvalidInput("database: PostgreSQL's driver is not installed", field="database", hint=hint) from None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if not _reads(connection):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")

    return engine


def _reads(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("headrace_reads"))


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that may write: committed at the end, rolled back on any exception."""
    with engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads, all of it at one moment of the store; it waits for no writer."""
    with engine.connect() as connection:
        connection = connection.execution_options(headrace_reads=True)
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


def now(offset_s: float = 0.0) -> str:
    """The time, `offset_s` from now, as the store and the API write it: RFC 3339, UTC, milliseconds."""
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset_s)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
