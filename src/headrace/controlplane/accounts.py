"""Tenants and API keys in the store."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import (
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Table,
    func,
    insert,
    select,
    update,
)

from headrace.controlplane import changes
from headrace.controlplane.changes import Record
from headrace.core import revisions
from headrace.core.database import metadata, now
from headrace.core.errors import NotFound
from headrace.core.names import did_you_mean
from headrace.core.resources import Approval, Key, KeyState, Quota, Role, Tenant

tenants = Table(
    "tenants",
    metadata,
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("name", String(63), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("rate_per_s", Float, nullable=False),
    Column("burst", Float, nullable=False),
    Column("max_in_flight", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("approval", String(16), nullable=False, server_default="optional"),
)
keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("tenant", Integer, ForeignKey("tenants.index"), nullable=False),
    Column("role", String(16), nullable=False),
    Column("label", String(200), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("account", String(100), nullable=False),
    Column("expires_at", String(32), nullable=True),
)


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant as stored; its index is never reused."""

    index: int
    name: str
    state: str
    rate_per_s: float
    burst: float
    max_in_flight: int
    created_at: str
    approval: Approval = "optional"

    def resource(self) -> Tenant:
        """As the API shows it."""
        quota = Quota(self.rate_per_s, self.burst, self.max_in_flight)
        state: Literal["active", "suspended"] = "active" if self.state == "active" else "suspended"
        return Tenant(self.name, state, quota, self.approval, self.created_at)


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as stored: the digest of its text, never the text."""

    id: str
    digest: bytes
    tenant: int
    role: Role
    label: str
    state: KeyState
    created_at: str
    account: str
    """The person or service that holds it; its own id where nobody said."""
    expires_at: str | None = None
    """When one that is rotating ends."""

    def resource(self, tenant: str) -> Key:
        """As the API shows it."""
        return Key(self.id, tenant, self.role, self.label, self.account, self.state, self.created_at, self.expires_at)

    def opens(self, at: str) -> bool:
        """Whether it is good at a time."""
        return self.state != "revoked" and (self.expires_at is None or at < self.expires_at)


def list_tenants(connection: Connection) -> list[TenantRow]:
    """All tenants, by index."""
    return [TenantRow(**row._asdict()) for row in connection.execute(select(tenants).order_by(tenants.c.index))]


def find_tenants(connection: Connection, indexes: Collection[int]) -> dict[int, TenantRow]:
    """Index -> tenant, of those that exist; at most `KEYS_MAX`."""
    rows = connection.execute(select(tenants).where(tenants.c.index.in_(indexes)))
    return {found.index: found for found in (TenantRow(**row._asdict()) for row in rows)}


def find_tenant(connection: Connection, name: str) -> TenantRow | None:
    """A tenant by name."""
    row = connection.execute(select(tenants).where(tenants.c.name == name)).first()
    return None if row is None else TenantRow(**row._asdict())


def named_tenant(connection: Connection, name: str) -> TenantRow:
    """A tenant by name. Raises NotFound, with the nearest name."""
    found = find_tenant(connection, name)
    if found is None:
        near = did_you_mean(name, (tenant.name for tenant in list_tenants(connection)))
        hint = near or f"headrace tenants create {name}"
        raise NotFound(f"tenant {name!r} does not exist", field="tenant", hint=hint)
    return found


def create_tenant(connection: Connection, name: str, quota: Quota, approval: Approval = "optional") -> TenantRow:
    """Add a tenant under the next index."""
    highest = connection.execute(select(func.max(tenants.c.index))).scalar()
    index = 0 if highest is None else int(highest) + 1
    row = TenantRow(index, name, "active", quota.rate_per_s, quota.burst, quota.max_in_flight, now(), approval)
    connection.execute(insert(tenants).values({name: getattr(row, name) for name in TenantRow.__slots__}))
    revisions.touch(connection, "tenant", index)
    return row


def update_tenant(connection: Connection, index: int, values: dict[str, object]) -> None:
    """Set columns of a tenant."""
    connection.execute(update(tenants).where(tenants.c.index == index).values(values))
    revisions.touch(connection, "tenant", index)


def list_keys(connection: Connection) -> list[KeyRow]:
    """All keys, oldest first."""
    return [KeyRow(**row._asdict()) for row in connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id))]


def find_keys(connection: Connection, ids: Collection[str]) -> dict[str, KeyRow]:
    """Id -> key, of those that exist; at most `KEYS_MAX`."""
    return {row.id: KeyRow(**row._asdict()) for row in connection.execute(select(keys).where(keys.c.id.in_(ids)))}


def find_key(connection: Connection, id_: str) -> KeyRow | None:
    """A key by its id."""
    row = connection.execute(select(keys).where(keys.c.id == id_)).first()
    return None if row is None else KeyRow(**row._asdict())


def key_by_text(connection: Connection, text: str) -> KeyRow | None:
    """The key of this text, while it opens anything: found by the id in it, compared in constant time."""
    found = find_key(connection, _id_in(text))
    digest = hashlib.sha256(text.encode()).digest()
    if found is None or not found.opens(now()) or not hmac.compare_digest(found.digest, digest):
        return None
    return found


def same_holder(connection: Connection, one: str, other: str) -> bool:
    """Whether two keys are held by the same person or service."""
    found = find_keys(connection, [one, other])
    return one == other or (one in found and other in found and found[one].account == found[other].account)


def create_key(connection: Connection, tenant: int, role: Role, label: str, account: str = "") -> tuple[KeyRow, str]:
    """Add a key; returns it and its text, which is kept nowhere."""
    id_ = f"hr_{secrets.token_hex(6)}"
    text = f"{id_}_{secrets.token_urlsafe(32)}"
    row = KeyRow(id_, hashlib.sha256(text.encode()).digest(), tenant, role, label, "active", now(), account or id_)
    connection.execute(insert(keys).values({name: getattr(row, name) for name in KeyRow.__slots__}))
    revisions.touch(connection, "key", id_)
    return row, text


def revoke_key(connection: Connection, id_: str) -> None:
    """A key that nobody may use any more."""
    connection.execute(update(keys).where(keys.c.id == id_).values(state="revoked"))
    revisions.touch(connection, "key", id_)


def rotate_key(connection: Connection, old: KeyRow, overlap_s: float) -> tuple[KeyRow, str]:
    """Another key of the same holder, tenant and role, good at once; the old one is so for `overlap_s` more."""
    made = create_key(connection, old.tenant, old.role, old.label, old.account)
    if overlap_s == 0:
        revoke_key(connection, old.id)
    else:
        values = {"state": "rotating", "expires_at": now(overlap_s)}
        connection.execute(update(keys).where(keys.c.id == old.id).values(values))
        revisions.touch(connection, "key", old.id)
    return made


def expired(found: Iterable[KeyRow]) -> bool:
    """Whether the time of any of these keys is over, and it is not revoked yet."""
    at = now()
    return any(key.expires_at is not None and not key.opens(at) for key in found if key.state == "rotating")


def expire_keys(connection: Connection) -> None:
    """Revoke the keys whose time is over."""
    query = select(keys).where(keys.c.state == "rotating", keys.c.expires_at <= now())
    over = [KeyRow(**row._asdict()) for row in connection.execute(query)]
    for key in over:
        revoke_key(connection, key.id)
        tenant = find_tenants(connection, [key.tenant])[key.tenant].name
        record = Record("key.expire", tenant, key.id, {"state": key.state}, {"state": "revoked"})
        changes.append(connection, "platform", record, "another has taken its place")


def bootstrap(connection: Connection, credentials: Path, urls: dict[str, str]) -> None:
    """Tenant ``default`` and an admin key in `credentials`, where there are none; and where the ports are now.

    The file is written before the key is committed: a crash between the two leaves a file whose key nobody holds, and
    the next start makes another. A key that was revoked on purpose is not made again while another admin is left.
    """
    if find_tenant(connection, "default") is None:
        create_tenant(connection, "default", Quota())
        changes.append(connection, "platform", Record("tenant.create", "default", "default"), "first start")
    text = _kept_key(credentials)
    if key_by_text(connection, text) is None and not _taken_back(connection, text):
        row, text = create_key(connection, 0, "admin", "made at start")
        record = Record("key.create", "default", row.id, None, {"id": row.id, "role": row.role})
        changes.append(connection, "platform", record, f"there was none in {credentials.name}")
    lines = [f'api_key = "{text}"', *(f'{name} = "{url}"' for name, url in urls.items())]
    fd, temporary = tempfile.mkstemp(dir=credentials.parent, prefix=".credentials-")  # 0600
    with os.fdopen(fd, "w") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, credentials)
    folder = os.open(credentials.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _taken_back(connection: Connection, text: str) -> bool:
    """Whether somebody revoked this key and another admin's opens the platform: then it is not for us to make one. A
    key that was never committed, because its start was killed, is no such."""
    admins = [key for key in list_keys(connection) if key.role == "admin" and key.state == "active"]
    found = find_key(connection, _id_in(text))
    return bool(admins) and found is not None and found.state == "revoked"


def _id_in(text: str) -> str:
    return "_".join(text.split("_", 2)[:2])


def _kept_key(credentials: Path) -> str:
    """The key's text in the file; empty where there is none or the file is no TOML any more."""
    try:
        return str(tomllib.loads(credentials.read_text()).get("api_key", ""))
    except (FileNotFoundError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return ""
