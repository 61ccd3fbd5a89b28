"""Which versions a pipeline runs. Both sides never change, and a version that a pipeline runs cannot be removed: the
store's foreign keys hold it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import Column, Connection, ForeignKeyConstraint, Integer, Row, String, Table, insert, select, tuple_

from headrace.core.database import KEYS_MAX, metadata
from headrace.registry import store
from headrace.registry.store import VersionRow

Key = tuple[int, int]
"""Model and version."""

version_parts = Table(
    "version_parts",
    metadata,
    Column("model", Integer, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("reference", String(255), primary_key=True),
    Column("part_model", Integer, nullable=False, index=True),
    Column("part_version", Integer, nullable=False),
    ForeignKeyConstraint(("model", "version"), ("versions.model", "versions.version")),
    ForeignKeyConstraint(
        ("part_model", "part_version"),
        ("versions.model", "versions.version"),
        name="fk_version_parts_part_model_versions",
    ),
)


@dataclass(frozen=True, slots=True)
class Part:
    """A version in a pipeline. `reference` is how the pipeline's declaration writes it."""

    reference: str
    version: VersionRow


def add(connection: Connection, key: Key, found: Iterable[Part]) -> None:
    """Store the parts of a new version."""
    rows = [
        {
            "model": key[0],
            "version": key[1],
            "reference": part.reference,
            "part_model": part.version.model,
            "part_version": part.version.version,
        }
        for part in found
    ]
    if rows:
        connection.execute(insert(version_parts), rows)


def forget(connection: Connection, key: Key) -> None:
    """The pipeline is deleted."""
    connection.execute(version_parts.delete().where(version_parts.c.model == key[0], version_parts.c.version == key[1]))


def of(connection: Connection, keys: Iterable[Key]) -> dict[Key, tuple[Part, ...]]:
    """Pipeline -> its parts, by reference; those without any are left out."""
    column = tuple_(version_parts.c.model, version_parts.c.version)
    wanted = list(keys)
    rows: list[Row[tuple[object, ...]]] = []
    for start in range(0, len(wanted), KEYS_MAX):
        chosen = column.in_(wanted[start : start + KEYS_MAX])
        rows += connection.execute(select(version_parts).where(chosen).order_by(version_parts.c.reference)).all()
    versions = store.find_versions(connection, {(row.part_model, row.part_version) for row in rows})
    found: dict[Key, tuple[Part, ...]] = {}
    for row in rows:
        part = Part(row.reference, versions[row.part_model, row.part_version])
        found[row.model, row.version] = (*found.get((row.model, row.version), ()), part)
    return found


def users(connection: Connection, models: Collection[int]) -> dict[Key, list[Key]]:
    """Version of these models (at most `KEYS_MAX`) -> the pipelines that run it."""
    found: dict[Key, list[Key]] = {}
    query = select(version_parts).where(version_parts.c.part_model.in_(models))
    for row in connection.execute(query.order_by(version_parts.c.model, version_parts.c.version)):
        keys = found.setdefault((row.part_model, row.part_version), [])
        if (row.model, row.version) not in keys:
            keys.append((row.model, row.version))
    return found
