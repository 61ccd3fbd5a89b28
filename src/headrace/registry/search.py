"""Full-text search over models and versions, the same on every database: a normalised text beside each of them, and
LIKE for each term. A model is found where every term stands in its own text or in that of one of its versions."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from sqlalchemy import Column, Connection, ForeignKey, Integer, Table, Text, insert, select

from headrace.core.database import metadata

search_texts = Table(
    "search_texts",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("text", Text, nullable=False),
)
MODEL = 0
"""The version under which a model's own text stands."""
TERMS_MAX = 16


def normalise(text: str) -> str:
    """Case, width and accents do not count: ``Café`` is found by ``cafe``."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(c for c in folded if not unicodedata.combining(c)).split())


def words(values: Iterable[object]) -> str:
    """What is to be found, as one text; of a mapping ``name=value``."""
    parts = []
    for value in values:
        if isinstance(value, dict):
            parts += [f"{name}={of}" for name, of in value.items()]
        elif isinstance(value, list | tuple):
            parts += map(str, value)
        else:
            parts.append(str(value))
    return normalise(" ".join(parts))


def put(connection: Connection, model: int, version: int, text: str) -> None:
    """The text of a version, or of a model (`MODEL`)."""
    forget(connection, model, version)
    connection.execute(insert(search_texts).values(model=model, version=version, text=text))


def forget(connection: Connection, model: int, version: int) -> None:
    """It is deleted."""
    connection.execute(search_texts.delete().where(search_texts.c.model == model, search_texts.c.version == version))


def find(connection: Connection, asked: str) -> set[int]:
    """Numbers of the models where all of the (at most `TERMS_MAX`) terms are found."""
    query = select(search_texts.c.model).distinct()
    for term in normalise(asked).split()[:TERMS_MAX]:
        matches = search_texts.alias()
        inner = select(matches.c.model).where(matches.c.text.contains(term, autoescape=True))
        query = query.where(search_texts.c.model.in_(inner))
    return set(connection.execute(query).scalars())
