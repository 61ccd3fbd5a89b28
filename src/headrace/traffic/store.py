"""Traffic policies in the store: append-only per model, so that what was in force at any time can be told.

`replaces` names the policy that a rollback goes back to, chosen when the policy is written: the one in force then, or
for a further step of a rollout the one in force when it began, so that one action undoes all its steps. Rolling back
puts that split in place, slot for slot, as a new policy that replaces the one rolled back: doing it twice comes back to
where it began. Overrides stand beside the policies and are not rolled back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec
from sqlalchemy import Column, Connection, ForeignKey, Integer, String, Table, Text, func, insert, select

from headrace.core import revisions
from headrace.core.database import metadata, now
from headrace.core.snapshot import Slots
from headrace.traffic.allocate import continues

policies = Table(
    "policies",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("split", Text, nullable=False),
    Column("replaces", Integer, nullable=True),
    Column("created_at", String(32), nullable=False),
)
overrides = Table(
    "overrides",
    metadata,
    Column("model", Integer, ForeignKey("models.id"), primary_key=True),
    Column("tenant", Integer, ForeignKey("tenants.index"), primary_key=True),
    Column("version", Integer, nullable=False),
)

_decode = msgspec.json.Decoder(tuple[Slots, ...]).decode


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy of a model; `epoch` 0 with an empty split before the first."""

    epoch: int
    split: tuple[Slots, ...]
    replaces: int | None
    created_at: str


NONE = Policy(0, (), None, "")


def current(connection: Connection, model: int) -> Policy:
    """The policy in force."""
    query = select(policies).where(policies.c.model == model).order_by(policies.c.epoch.desc()).limit(1)
    row = connection.execute(query).first()
    return NONE if row is None else Policy(row.epoch, _decode(row.split), row.replaces, row.created_at)


def at_epoch(connection: Connection, model: int, epoch: int) -> Policy:
    """The policy of an epoch."""
    row = connection.execute(select(policies).where(policies.c.model == model, policies.c.epoch == epoch)).one()
    return Policy(row.epoch, _decode(row.split), row.replaces, row.created_at)


def previous(connection: Connection, model: int) -> Policy | None:
    """What a rollback would put in place; None where there is nothing to go back to."""
    replaces = current(connection, model).replaces
    return at_epoch(connection, model, replaces) if replaces else None


def append(connection: Connection, model: int, split: tuple[Slots, ...]) -> Policy:
    """Put a split in force as a new policy."""
    before, start = current(connection, model), previous(connection, model)
    step = start is not None and continues(start.split, before.split, split)
    return _append(connection, model, before.epoch, split, before.replaces if step else before.epoch or None)


def roll_back(connection: Connection, model: int) -> Policy | None:
    """Put back what `previous` names; None, and nothing done, where there is nothing to go back to."""
    before, back = current(connection, model), previous(connection, model)
    return None if back is None else _append(connection, model, before.epoch, back.split, before.epoch)


def _append(connection: Connection, model: int, epoch: int, split: tuple[Slots, ...], replaces: int | None) -> Policy:
    policy = Policy(epoch + 1, split, replaces, now())
    connection.execute(
        insert(policies).values(
            model=model,
            epoch=policy.epoch,
            split=msgspec.json.encode(split).decode(),
            replaces=policy.replaces,
            created_at=policy.created_at,
        )
    )
    revisions.touch(connection, "model", model)
    return policy


def list_current(connection: Connection, of: Collection[int] | None = None) -> dict[int, tuple[Policy, Policy | None]]:
    """Model -> (policy in force, the one that a rollback would put in place); of these models (at most `KEYS_MAX`),
    or of all."""
    latest = select(policies.c.model, func.max(policies.c.epoch).label("epoch")).group_by(policies.c.model)
    newest = (latest if of is None else latest.where(policies.c.model.in_(of))).subquery()
    query = select(policies).join(newest, (policies.c.model == newest.c.model) & (policies.c.epoch == newest.c.epoch))
    rows = {
        row.model: Policy(row.epoch, _decode(row.split), row.replaces, row.created_at)
        for row in connection.execute(query)
    }
    back = policies.alias()
    joined = query.add_columns(back.c.epoch, back.c.split, back.c.replaces, back.c.created_at).join(
        back, (back.c.model == policies.c.model) & (back.c.epoch == policies.c.replaces)
    )
    olds = {row[0]: Policy(row[5], _decode(row[6]), row[7], row[8]) for row in connection.execute(joined)}
    return {model: (policy, olds.get(model)) for model, policy in rows.items()}


def history(connection: Connection, model: int, limit: int) -> list[Policy]:
    """The latest policies, newest first."""
    query = select(policies).where(policies.c.model == model).order_by(policies.c.epoch.desc()).limit(limit)
    return [Policy(row.epoch, _decode(row.split), row.replaces, row.created_at) for row in connection.execute(query)]


def list_overrides(connection: Connection, of: Collection[int] | None = None) -> dict[int, dict[int, int]]:
    """Model -> tenant index -> version; of these models (at most `KEYS_MAX`), or of all."""
    found: dict[int, dict[int, int]] = {}
    query = select(overrides)
    for model, tenant, version in connection.execute(query if of is None else query.where(overrides.c.model.in_(of))):
        found.setdefault(model, {})[tenant] = version
    return found


def set_override(connection: Connection, model: int, tenant: int, version: int | None) -> int | None:
    """Pin a tenant to a version, or with None let it go; returns what it was pinned to."""
    before = list_overrides(connection, [model]).get(model, {}).get(tenant)
    connection.execute(overrides.delete().where(overrides.c.model == model, overrides.c.tenant == tenant))
    if version is not None:
        connection.execute(insert(overrides).values(model=model, tenant=tenant, version=version))
    revisions.touch(connection, "model", model)
    return before
