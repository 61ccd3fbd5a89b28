"""Reference statistics of versions in the store: written once, when a version is registered or later, then fixed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec
from sqlalchemy import Column, Connection, ForeignKey, Integer, String, Table, Text, insert, select

from headrace.core.database import metadata, now
from headrace.core.reference import Reference, Sample

references = Table(
    "version_references",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("sample", Text, nullable=False),
    Column("statistics", Text, nullable=False),
    Column("features", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("created_by", String(64), nullable=False),
)
_reference = msgspec.json.Decoder(Reference).decode
_sample = msgspec.json.Decoder(Sample).decode


@dataclass(frozen=True, slots=True)
class About:
    """A version's reference without its statistics."""

    version: int
    sample: Sample
    features: int
    rows: int
    created_at: str
    created_by: str


def add(connection: Connection, model: int, version: int, sample: Sample, found: Reference, by: str) -> None:
    """Of a version that has none."""
    connection.execute(
        insert(references).values(
            model=model,
            version=version,
            sample=msgspec.json.encode(sample).decode(),
            statistics=msgspec.json.encode(found).decode(),
            features=len(found.inputs) + len(found.outputs),
            rows=found.rows,
            created_at=now(),
            created_by=by,
        )
    )


def list_of(connection: Connection, models: Collection[int]) -> dict[tuple[int, int], About]:
    """(model, version) -> its reference, of some models (at most `KEYS_MAX`). Those without are left out."""
    columns = [references.c[name] for name in About.__slots__]
    query = select(references.c.model, *columns).where(references.c.model.in_(models))
    return {
        (row.model, row.version): About(
            row.version, _sample(row.sample), row.features, row.rows, row.created_at, row.created_by
        )
        for row in connection.execute(query)
    }


def find(connection: Connection, model: int, version: int) -> Reference | None:
    """A version's statistics."""
    key = (references.c.model == model, references.c.version == version)
    text = connection.execute(select(references.c.statistics).where(*key)).scalar()
    return None if text is None else _reference(text)


def forget(connection: Connection, model: int, version: int) -> None:
    """The version is deleted."""
    connection.execute(references.delete().where(references.c.model == model, references.c.version == version))
