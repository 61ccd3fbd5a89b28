"""What people decide of versions, beside the versions themselves, which never change: their state, their signature
tests and how those went, the aliases that point at them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec
from sqlalchemy import Column, Connection, ForeignKey, Integer, String, Table, Text, insert, select, update

from headrace.core import revisions
from headrace.core.database import metadata, now
from headrace.core.golden import Golden, GoldenResult
from headrace.core.resources import VersionState
from headrace.core.states import step
from headrace.registry.states import VERSION

lifecycles = Table(
    "lifecycles",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("changed_at", String(32), nullable=False),
    Column("changed_by", String(64), nullable=False),
    Column("golden", Text, nullable=True),
    Column("tests", Text, nullable=True),
)
aliases = Table(
    "aliases",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
)
_tests = msgspec.json.Decoder(tuple[GoldenResult, ...]).decode
_golden = msgspec.json.Decoder(Golden).decode


@dataclass(frozen=True, slots=True)
class Life:
    """Where a version is."""

    model: int
    version: int
    state: VersionState
    changed_at: str
    changed_by: str
    golden: Golden | None
    tests: tuple[GoldenResult, ...]


def state_after(tests: Collection[GoldenResult]) -> VersionState:
    """What its signature tests make of a version."""
    return "registered" if any(result.faults for result in tests) else "validated"


def begin(
    connection: Connection, model: int, version: int, by: str, golden: Golden | None, tests: Collection[GoldenResult]
) -> None:
    """A version was registered."""
    connection.execute(
        insert(lifecycles).values(
            model=model,
            version=version,
            state=state_after(tests),
            changed_at=now(),
            changed_by=by,
            golden=None if golden is None else msgspec.json.encode(golden).decode(),
            tests=msgspec.json.encode(tests).decode(),
        )
    )


def find(connection: Connection, model: int, version: int) -> Life:
    """Of a version that exists."""
    return list_of(connection, [model], version)[model, version]


def list_of(connection: Connection, models: Collection[int], version: int | None = None) -> dict[tuple[int, int], Life]:
    """(model, version) -> where it is, of these models (at most `KEYS_MAX`); of the one version, or of all."""
    query = select(lifecycles).where(lifecycles.c.model.in_(models))
    if version is not None:
        query = query.where(lifecycles.c.version == version)
    found = {}
    for row in connection.execute(query):
        golden = None if row.golden is None else _golden(row.golden)
        tests = () if row.tests is None else _tests(row.tests)
        life = Life(row.model, row.version, row.state, row.changed_at, row.changed_by, golden, tests)
        found[row.model, row.version] = life
    return found


def move(connection: Connection, before: Life, to: VersionState, by: str) -> None:
    """Take a step of the table. Raises IllegalTransition."""
    step(VERSION, before.state, to)
    _update(connection, before, state=to, changed_at=now(), changed_by=by)


def tested(
    connection: Connection, before: Life, golden: Golden, tests: Collection[GoldenResult], by: str
) -> VersionState:
    """Its signature tests were run; returns its state. Raises IllegalTransition where they may not change it."""
    to = state_after(tests)
    if to != before.state and not (to == "validated" and before.state == "approved"):
        move(connection, before, to, by)
    texts = {"golden": msgspec.json.encode(golden).decode(), "tests": msgspec.json.encode(tests).decode()}
    _update(connection, before, **texts)
    return find(connection, before.model, before.version).state


def _update(connection: Connection, before: Life, **values: object) -> None:
    key = (lifecycles.c.model == before.model, lifecycles.c.version == before.version)
    connection.execute(update(lifecycles).where(*key).values(**values))


def forget(connection: Connection, model: int, version: int) -> None:
    """The version is deleted."""
    connection.execute(lifecycles.delete().where(lifecycles.c.model == model, lifecycles.c.version == version))


# ------------------------------------------------------------------------------------------------ aliases
def list_aliases(connection: Connection, of: Collection[int] | None = None) -> dict[int, dict[str, int]]:
    """Model -> alias -> version, by name; of these models (at most `KEYS_MAX`), or of all."""
    query = select(aliases).order_by(aliases.c.model, aliases.c.name)
    found: dict[int, dict[str, int]] = {}
    for model, name, version in connection.execute(query if of is None else query.where(aliases.c.model.in_(of))):
        found.setdefault(model, {})[name] = version
    return found


def set_alias(connection: Connection, model: int, name: str, version: int | None) -> int | None:
    """Point an alias at a version, or with None take it away; returns where it pointed."""
    before = list_aliases(connection, [model]).get(model, {}).get(name)
    if before == version:
        return before
    connection.execute(aliases.delete().where(aliases.c.model == model, aliases.c.name == name))
    if version is not None:
        connection.execute(insert(aliases).values(model=model, name=name, version=version))
    revisions.touch(connection, "model", model)
    return before
