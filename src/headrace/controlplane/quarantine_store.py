"""Inputs that have killed replicas: what the routers have found out, kept in the store."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Column, Connection, Float, ForeignKey, Integer, String, Table, delete, insert, select

from headrace.controlplane import accounts, changes
from headrace.controlplane.changes import Record
from headrace.core import resources as r
from headrace.core import revisions
from headrace.core.database import metadata, now
from headrace.core.report import Condemned
from headrace.registry import store as registry

QUARANTINED_MAX = 1000
"""Inputs of a version; the oldest are let go."""

quarantine = Table(
    "quarantine",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", String(32), primary_key=True),
    Column("at", String(32), nullable=False),
    Column("until", Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Row:
    """An input in quarantine; its fields are the table's columns, in order. `until` is in Unix seconds."""

    model: int
    version: int
    digest: str
    at: str
    until: float


def find(connection: Connection, models: Collection[int]) -> list[Row]:
    """Of these models (at most `KEYS_MAX`), oldest first; without those whose time is over."""
    query = select(quarantine).where(quarantine.c.model.in_(models), quarantine.c.until > time.time())
    return [Row(*row) for row in connection.execute(query.order_by(quarantine.c.at, quarantine.c.digest))]


def record(connection: Connection, found: Sequence[Condemned]) -> bool:
    """Write down what a router has found out; what is known already, or of a version that is not there, changes
    nothing. True where something did."""
    changed = False
    for one in found:
        tenant_name, _, name = one.model.partition("/")
        tenant = next((t for t in accounts.list_tenants(connection) if t.name == tenant_name), None)
        model = registry.find_model(connection, tenant.index, name) if tenant is not None else None
        if model is None or registry.find_version(connection, model.id, one.version) is None:
            continue
        rows = [row for row in find(connection, [model.id]) if row.version == one.version]
        digest = one.digest.hex()
        if any(row.digest == digest for row in rows):
            continue
        of = (quarantine.c.model == model.id, quarantine.c.version == one.version)
        kept = [row.digest for row in rows][-(QUARANTINED_MAX - 1) :]
        connection.execute(delete(quarantine).where(*of, quarantine.c.digest.not_in(kept)))
        connection.execute(
            insert(quarantine).values(model=model.id, version=one.version, digest=digest, at=now(), until=one.until)
        )
        revisions.touch(connection, "model", model.id)
        entity = f"{name}@{one.version}"
        after = {"digest": digest, "until": text_of(one.until)}
        undo = f"headrace quarantine lift {entity} {digest}"
        reason = "the replica died while this input ran alone, after another had died with it"
        changes.append(
            connection, changes.PLATFORM, Record("quarantine.add", tenant_name, entity, None, after, undo), reason
        )
        changed = True
    return changed


def remove(connection: Connection, model: int, version: int, digests: Collection[str]) -> None:
    """Let these inputs go."""
    of = (quarantine.c.model == model, quarantine.c.version == version)
    connection.execute(delete(quarantine).where(*of, quarantine.c.digest.in_(digests)))
    revisions.touch(connection, "model", model)


def shown(connection: Connection, tenants: Sequence[accounts.TenantRow], name: str | None) -> list[r.Quarantined]:
    """What is in quarantine in these tenants; of the model of this name, or of all."""
    names = {tenant.index: tenant.name for tenant in tenants}
    models = {m.id: m for m in registry.list_models(connection) if m.tenant in names and name in (None, m.name)}
    query = select(quarantine).where(quarantine.c.until > time.time()).order_by(quarantine.c.at)
    rows = [Row(*row) for row in connection.execute(query)]
    return [
        r.Quarantined(
            models[row.model].name,
            names[models[row.model].tenant],
            row.version,
            row.digest,
            row.at,
            text_of(row.until),
        )
        for row in rows
        if row.model in models
    ]


def text_of(until: float) -> str:
    """Unix seconds as the API writes a time."""
    return datetime.fromtimestamp(until, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
