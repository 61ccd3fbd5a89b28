"""Which artifacts may be removed: what the store's files do not say of themselves.

A row is written when an artifact is put or asked for, and says when that was last; `removing` is set in the one
transaction that looks whether a version needs it, and the row goes when the file has gone. Whoever puts the same digest
meanwhile waits for that; whoever registers a version of it must find the row, not being removed, in the transaction
that writes the version. So a version's artifact is never removed, and a removal that was cut off is finished later.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Boolean, Column, Connection, String, Table, insert, select, update

from headrace.core.database import metadata, now
from headrace.registry import jobs
from headrace.registry.store import versions

artifacts = Table(
    "artifacts",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("touched_at", String(32), nullable=False),
    Column("removing", Boolean, nullable=False),
)


def touch(connection: Connection, digest: str) -> bool:
    """Note that an artifact was put or asked for. False while it is being removed."""
    found = _find(connection, digest)
    if found is None:
        connection.execute(insert(artifacts).values(digest=digest, touched_at=now(), removing=False))
        return True
    if not found[1]:
        connection.execute(update(artifacts).where(artifacts.c.digest == digest).values(touched_at=now()))
    return not found[1]


def is_kept(connection: Connection, digest: str) -> bool:
    """Whether a version may rely on it from this transaction on."""
    found = _find(connection, digest)
    return found is not None and not found[1]


def references(connection: Connection) -> dict[str, list[tuple[int, int]]]:
    """Digest -> the versions, as (model, number), that need it."""
    query = select(versions.c.digest, versions.c.model, versions.c.version).order_by(versions.c.model)
    found: dict[str, list[tuple[int, int]]] = {}
    for digest, model, version in connection.execute(query):
        found.setdefault(digest, []).append((model, version))
    return found


def known(connection: Connection) -> set[str]:
    """All that were put or asked for."""
    return set(connection.execute(select(artifacts.c.digest)).scalars())


def unneeded(connection: Connection, candidates: Collection[str], before: str) -> list[str]:
    """Those that no version and no unfinished job needs, and nobody has touched since."""
    needed = references(connection).keys() | jobs.needed(connection)
    touched = {row[0]: row[1] for row in connection.execute(select(artifacts.c.digest, artifacts.c.touched_at))}
    return [digest for digest in candidates if digest not in needed and touched.get(digest, "") < before]


def condemn(connection: Connection, digests: Collection[str]) -> None:
    """Mark for removal; in the transaction of `unneeded`."""
    for digest in digests:
        if _find(connection, digest) is None:
            connection.execute(insert(artifacts).values(digest=digest, touched_at=now(), removing=True))
        else:
            connection.execute(update(artifacts).where(artifacts.c.digest == digest).values(removing=True))


def condemned(connection: Connection) -> list[str]:
    """Those whose removal was begun."""
    return list(connection.execute(select(artifacts.c.digest).where(artifacts.c.removing)).scalars())


def forget(connection: Connection, digest: str) -> None:
    """It has been removed."""
    connection.execute(artifacts.delete().where(artifacts.c.digest == digest, artifacts.c.removing))


def _find(connection: Connection, digest: str) -> tuple[str, bool] | None:
    row = connection.execute(select(artifacts).where(artifacts.c.digest == digest)).first()
    return None if row is None else (row.touched_at, row.removing)
