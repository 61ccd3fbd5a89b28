"""A whole store copied into an empty one: how a platform moves from SQLite to PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, Engine, func, insert, select, text

from headrace.controlplane import leases
from headrace.controlplane.store import open_store
from headrace.core.database import KEYS_MAX, metadata, reading, transaction
from headrace.core.errors import Conflict

Progress = Callable[[str, int], None]
"""Is told of each table, and how many rows it has got."""


def copy_store(source: str, target: str, progress: Progress) -> int:
    """Copy everything but who leads, in one transaction: all of it is there then, or nothing.

    Args:
        source: URL of the database to copy; brought up to date by it, and nothing else.
        target: URL of one with nothing in it.
        progress: is told how it goes.

    Returns:
        How many rows were copied.

    Raises:
        Conflict: the target has something in it.
        Unavailable: one of them cannot be reached.
    """
    origin, goal = open_store(source), open_store(target)
    try:
        with reading(origin) as read, transaction(goal) as write:
            return _copy(read, write, goal, progress)
    finally:
        origin.dispose()
        goal.dispose()


def _copy(read: Connection, write: Connection, goal: Engine, progress: Progress) -> int:
    tables = [table for table in metadata.sorted_tables if table is not leases.leases]
    full = [table.name for table in tables if table.name != "counters" and write.execute(select(table)).first()]
    if full:
        raise Conflict(f"database: {full[0]} has rows already", field="database", hint="name one with nothing in it")
    total = 0
    for table in tables:
        write.execute(table.delete())  # counters: the migrations have begun them
        rows = read.execution_options(yield_per=KEYS_MAX).execute(select(table))
        count = 0
        for part in rows.mappings().partitions(KEYS_MAX):
            write.execute(insert(table), [dict(row) for row in part])
            count += len(part)
        progress(table.name, count)
        total += count
        if goal.dialect.name == "postgresql" and (numbered := table.autoincrement_column) is not None:
            # Rows that bring their numbers do not move the sequence that the next ones come from.
            last = write.execute(select(func.max(numbered))).scalar()
            sequence = f"pg_get_serial_sequence('{table.name}', '{numbered.name}')"
            if last is not None and write.execute(text(f"SELECT {sequence}")).scalar() is not None:
                write.execute(text(f"SELECT setval({sequence}, {int(last)})"))
    return total
