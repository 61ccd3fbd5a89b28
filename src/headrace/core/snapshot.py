"""Routing snapshots: all that a router must know, as the control plane sends it.

A snapshot is whole (`base` 0) or a change against the snapshot of epoch `base`. Routers keep the last whole state on
disk and serve from it when the control plane is gone. Identities: a tenant is its index (small, never reused), a model
is ``tenant/name``, a version its number, a replica its id, a key the SHA-256 of its text.
"""

from __future__ import annotations

import msgspec

SLOTS = 10_000
"""A traffic split is an assignment of this many hash slots to versions: .01 % each."""


class TenantRoute(msgspec.Struct, frozen=True, array_like=True):
    """A tenant's limits. `rate_per_s` 0 refuses everything (a suspended tenant)."""

    index: int
    name: str
    rate_per_s: float
    burst: float
    max_in_flight: int


class KeyRoute(msgspec.Struct, frozen=True, array_like=True):
    """An API key: SHA-256 of ``hr_<id>_<secret>``, whom it names and what it may do."""

    digest: bytes
    tenant: int
    role: str


class ReplicaRoute(msgspec.Struct, frozen=True, array_like=True):
    """Where a replica listens: ``unix:/path`` or ``tcp:host:port``."""

    id: str
    address: str


class Endpoint(msgspec.Struct, frozen=True, array_like=True):
    """A version in a replica: `slot` is the u16 by which frames name it there."""

    replica: str
    slot: int


class VersionRoute(msgspec.Struct, frozen=True, array_like=True):
    """A deployed version. Routable while `endpoints` is not empty. `metadata` is the OIP model metadata's
    ``inputs``/``outputs`` as JSON, e.g. ``{"inputs":[...],"outputs":[...]}``."""

    version: int
    endpoints: tuple[Endpoint, ...]
    engine: str
    metadata: bytes


class Slots(msgspec.Struct, frozen=True, array_like=True):
    """Hash slots [start of this range, `end`) go to `version`; ranges stand in order and end at `SLOTS`."""

    end: int
    version: int


class Override(msgspec.Struct, frozen=True, array_like=True):
    """All requests of `tenant` go to `version`, before any hashing."""

    tenant: int
    version: int


class ModelRoute(msgspec.Struct, frozen=True, array_like=True):
    """A model, its ready versions and its traffic policy."""

    id: str
    name: str
    tenant: int
    grants: tuple[int, ...]
    versions: tuple[VersionRoute, ...]
    policy_epoch: int
    split: tuple[Slots, ...]
    overrides: tuple[Override, ...]
    salt: bytes
    idempotent: bool = True
    timeout_s: float = 30.0
    body_max_bytes: int = 64 << 20


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """The whole state (`base` 0), or what changed since epoch `base`: entries replace those of the same identity."""

    epoch: int
    base: int
    tenants: tuple[TenantRoute, ...] = ()
    keys: tuple[KeyRoute, ...] = ()
    replicas: tuple[ReplicaRoute, ...] = ()
    models: tuple[ModelRoute, ...] = ()
    removed_tenants: tuple[int, ...] = ()
    removed_keys: tuple[bytes, ...] = ()
    removed_replicas: tuple[str, ...] = ()
    removed_models: tuple[str, ...] = ()
    anonymous_tenant: int = -1
    """Whom a request without a key belongs to; -1 refuses it with 401."""


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Snapshot).decode


def apply(old: Snapshot, change: Snapshot) -> Snapshot:
    """The whole state after `change`. Raises ValueError when `change` builds on another epoch than `old`'s."""
    if change.base == 0:
        return change
    if change.base != old.epoch:
        raise ValueError(f"change builds on epoch {change.base}, this is {old.epoch}")
    tenants = {t.index: t for t in old.tenants} | {t.index: t for t in change.tenants}
    keys = {k.digest: k for k in old.keys} | {k.digest: k for k in change.keys}
    replicas = {r.id: r for r in old.replicas} | {r.id: r for r in change.replicas}
    models = {m.id: m for m in old.models} | {m.id: m for m in change.models}
    for index in change.removed_tenants:
        tenants.pop(index, None)
    for digest in change.removed_keys:
        keys.pop(digest, None)
    for replica in change.removed_replicas:
        replicas.pop(replica, None)
    for model in change.removed_models:
        models.pop(model, None)
    return Snapshot(
        change.epoch,
        0,
        tuple(tenants.values()),
        tuple(keys.values()),
        tuple(replicas.values()),
        tuple(models.values()),
        anonymous_tenant=change.anonymous_tenant,
    )


def difference(old: Snapshot, new: Snapshot) -> Snapshot:
    """The change that `apply` turns `old` into `new` with. Both whole."""
    old_tenants = {t.index: t for t in old.tenants}
    old_keys = {k.digest: k for k in old.keys}
    old_replicas = {r.id: r for r in old.replicas}
    old_models = {m.id: m for m in old.models}
    return Snapshot(
        new.epoch,
        old.epoch,
        tuple(t for t in new.tenants if old_tenants.get(t.index) != t),
        tuple(k for k in new.keys if old_keys.get(k.digest) != k),
        tuple(r for r in new.replicas if old_replicas.get(r.id) != r),
        tuple(m for m in new.models if old_models.get(m.id) is not m and old_models.get(m.id) != m),
        tuple(old_tenants.keys() - {t.index for t in new.tenants}),
        tuple(old_keys.keys() - {k.digest for k in new.keys}),
        tuple(old_replicas.keys() - {r.id for r in new.replicas}),
        tuple(old_models.keys() - {m.id for m in new.models}),
        anonymous_tenant=new.anonymous_tenant,
    )
