"""Where versions come from, and what they need: written once, when they are registered."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Column, Connection, ForeignKey, Index, Integer, Table, Text, insert, select

from headrace.core.database import metadata

lineages = Table(
    "lineages",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("training_set", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("parent_model", Integer, ForeignKey("models.id"), nullable=True),
    Column("parent_version", Integer, nullable=True),
    Column("features", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Index("ix_lineages_parent", "parent_model", "parent_version"),
)


@dataclass(frozen=True, slots=True)
class Origin:
    """A version's; `parent` is (model, version)."""

    training_set: str = ""
    code: str = ""
    parent: tuple[int, int] | None = None
    features: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


NONE = Origin()


def add(connection: Connection, model: int, version: int, origin: Origin) -> None:
    """Of a new version."""
    parent_model, parent_version = origin.parent or (None, None)
    connection.execute(
        insert(lineages).values(
            model=model,
            version=version,
            training_set=origin.training_set,
            code=origin.code,
            parent_model=parent_model,
            parent_version=parent_version,
            features=msgspec.json.encode(origin.features).decode(),
            metadata=msgspec.json.encode(origin.metadata).decode(),
        )
    )


def list_of(connection: Connection, models: Collection[int]) -> dict[tuple[int, int], Origin]:
    """(model, version) -> where it comes from, of these models (at most `KEYS_MAX`). What nothing was said of is left
    out."""
    query = select(lineages).where(lineages.c.model.in_(models))
    return {
        (row.model, row.version): Origin(
            row.training_set,
            row.code,
            None if row.parent_model is None else (row.parent_model, row.parent_version),
            msgspec.json.decode(row.features, type=list[str]),
            msgspec.json.decode(row.metadata, type=dict[str, str]),
        )
        for row in connection.execute(query)
    }


def children(connection: Connection, model: int, version: int) -> list[tuple[int, int]]:
    """(model, version) of those that name this one as their parent."""
    parent = (lineages.c.parent_model == model, lineages.c.parent_version == version)
    query = select(lineages.c.model, lineages.c.version).where(*parent)
    return [(row.model, row.version) for row in connection.execute(query.order_by(*query.selected_columns))]


def forget(connection: Connection, model: int, version: int) -> None:
    """The version is deleted."""
    connection.execute(lineages.delete().where(lineages.c.model == model, lineages.c.version == version))
