"""Models, grants and versions in the store."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    Row,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    select,
    tuple_,
    update,
)

from headrace.core import revisions
from headrace.core.database import KEYS_MAX, metadata, now
from headrace.core.resources import Engine, ModelUpdate
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions
from headrace.registry import search

models = Table(
    "models",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", Integer, ForeignKey("tenants.index"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("description", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("idempotent", Boolean, nullable=False),
    Column("timeout_s", Float, nullable=False),
    Column("body_max_bytes", BigInteger, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("tenant", "name"),
)
grants = Table(
    "grants",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("tenant", Integer, ForeignKey("tenants.index"), primary_key=True),
)
versions = Table(
    "versions",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("engine", String(32), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("file_name", Text, nullable=False),
    Column("signature", Text, nullable=False),
    Column("options", Text, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("created_by", String(64), nullable=False),
)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model as stored. `tenant` is the index."""

    id: int
    tenant: int
    name: str
    description: str
    tags: dict[str, str]
    idempotent: bool
    timeout_s: float
    body_max_bytes: int
    salt: bytes
    created_at: str


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version as stored; immutable."""

    model: int
    version: int
    engine: Engine
    digest: str
    size_bytes: int
    file_name: str
    signature: Signature
    options: EngineOptions
    metrics: dict[str, float]
    tags: dict[str, str]
    description: str
    created_at: str
    created_by: str


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _model(row: Row[tuple[object, ...]]) -> ModelRow:
    fields = row._asdict()
    fields["tags"] = msgspec.json.decode(fields["tags"])
    return ModelRow(**fields)


def _version(row: Row[tuple[object, ...]]) -> VersionRow:
    fields = row._asdict()
    fields["signature"] = msgspec.json.decode(fields["signature"], type=Signature)
    fields["options"] = msgspec.json.decode(fields["options"], type=EngineOptions)
    for name in ("metrics", "tags"):
        fields[name] = msgspec.json.decode(fields[name])
    return VersionRow(**fields)


def find_model(connection: Connection, tenant: int, name: str) -> ModelRow | None:
    """A tenant's model by name."""
    row = connection.execute(select(models).where(models.c.tenant == tenant, models.c.name == name)).first()
    return None if row is None else _model(row)


def find_models(connection: Connection, ids: Collection[int]) -> dict[int, ModelRow]:
    """Id -> model, of those that exist; at most `KEYS_MAX`."""
    return {row.id: _model(row) for row in connection.execute(select(models).where(models.c.id.in_(ids)))}


def list_models(connection: Connection) -> list[ModelRow]:
    """All models, by id."""
    return [_model(row) for row in connection.execute(select(models).order_by(models.c.id))]


def model_names(connection: Connection, tenant: int) -> list[str]:
    """Names of a tenant's models."""
    return list(connection.execute(select(models.c.name).where(models.c.tenant == tenant)).scalars())


def ensure_model(connection: Connection, tenant: int, name: str) -> ModelRow:
    """The model, made with defaults if it is new."""
    found = find_model(connection, tenant, name)
    if found is None:
        connection.execute(
            insert(models).values(
                tenant=tenant,
                name=name,
                description="",
                tags="{}",
                idempotent=True,
                timeout_s=30.0,
                body_max_bytes=64 << 20,
                salt=secrets.token_bytes(16),
                created_at=now(),
            )
        )
        found = find_model(connection, tenant, name)
        assert found is not None
        search.put(connection, found.id, search.MODEL, search.words([name]))
        revisions.touch(connection, "model", found.id)
    return found


def update_model(connection: Connection, model: int, change: ModelUpdate) -> None:
    """Set the fields that `change` gives."""
    values: dict[str, object] = {
        name: getattr(change, name)
        for name in ("description", "idempotent", "timeout_s", "body_max_bytes")
        if getattr(change, name) is not None
    }
    if change.tags is not None:
        values["tags"] = _text(change.tags)
    if values:
        connection.execute(update(models).where(models.c.id == model).values(values))
        row = find_models(connection, [model])[model]
        search.put(connection, model, search.MODEL, search.words([row.name, row.description, row.tags]))
        revisions.touch(connection, "model", model)


def list_grants(connection: Connection, of: Collection[int] | None = None) -> dict[int, list[int]]:
    """Model -> indexes of the tenants it is granted to; of these models (at most `KEYS_MAX`), or of all."""
    found: dict[int, list[int]] = {}
    query = select(grants).order_by(grants.c.model, grants.c.tenant)
    for model, tenant in connection.execute(query if of is None else query.where(grants.c.model.in_(of))):
        found.setdefault(model, []).append(tenant)
    return found


def grant(connection: Connection, model: int, tenant: int) -> bool:
    """Grant a model; False when it was."""
    if tenant in list_grants(connection, [model]).get(model, []):
        return False
    connection.execute(insert(grants).values(model=model, tenant=tenant))
    revisions.touch(connection, "model", model)
    return True


def revoke_grant(connection: Connection, model: int, tenant: int) -> bool:
    """Take a grant back; False when there was none."""
    was = connection.execute(grants.delete().where(grants.c.model == model, grants.c.tenant == tenant)).rowcount > 0
    if was:
        revisions.touch(connection, "model", model)
    return was


def find_version(connection: Connection, model: int, version: int) -> VersionRow | None:
    """One version."""
    row = connection.execute(select(versions).where(versions.c.model == model, versions.c.version == version)).first()
    return None if row is None else _version(row)


def find_versions(connection: Connection, keys: Iterable[tuple[int, int]]) -> dict[tuple[int, int], VersionRow]:
    """Many versions by (model, number) in a few queries; those that do not exist are left out."""
    column = tuple_(versions.c.model, versions.c.version)
    wanted = list(keys)
    found = {}
    for start in range(0, len(wanted), KEYS_MAX):
        for row in connection.execute(select(versions).where(column.in_(wanted[start : start + KEYS_MAX]))):
            found[row.model, row.version] = _version(row)
    return found


def latest_version(connection: Connection, model: int) -> int | None:
    """The highest version's number."""
    found: int | None = connection.execute(
        select(func.max(versions.c.version)).where(versions.c.model == model)
    ).scalar()
    return found


def latest_versions(connection: Connection) -> dict[int, int]:
    """Model -> its highest version's number."""
    rows = connection.execute(select(versions.c.model, func.max(versions.c.version)).group_by(versions.c.model))
    return {row[0]: row[1] for row in rows}


def next_version(connection: Connection, model: int) -> int:
    """The number of the next version: one that none had, also none that was deleted."""
    deleted = revisions.last(connection, f"version/{model}")
    return max(latest_version(connection, model) or 0, deleted) + 1


def delete_version(connection: Connection, model: int, version: int) -> None:
    """Delete a version; its number stays taken."""
    revisions.reach(connection, f"version/{model}", version)
    connection.execute(versions.delete().where(versions.c.model == model, versions.c.version == version))
    search.forget(connection, model, version)


def list_versions(connection: Connection, model: int) -> list[VersionRow]:
    """A model's versions, oldest first."""
    query = select(versions).where(versions.c.model == model).order_by(versions.c.version)
    return [_version(row) for row in connection.execute(query)]


def list_all_versions(connection: Connection) -> list[VersionRow]:
    """Every version of every model."""
    return [_version(row) for row in connection.execute(select(versions))]


def add_version(connection: Connection, row: VersionRow, found_by: Iterable[object] = ()) -> None:
    """Store a new version; it is found by its own words and by those of `found_by`."""
    values = {name: getattr(row, name) for name in VersionRow.__slots__}
    for name in ("signature", "options", "metrics", "tags"):
        values[name] = _text(values[name])
    connection.execute(insert(versions).values(values))
    named = [spec.name for spec in (*row.signature.inputs, *row.signature.outputs)]
    said: list[object] = [row.engine, row.file_name, row.description, row.tags, named, row.digest, *found_by]
    search.put(connection, row.model, row.version, search.words(said))
