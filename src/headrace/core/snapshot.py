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
    standby: bool = False
    """Only for when none of the others is up: it would have to load the version first."""


class Quarantined(msgspec.Struct, frozen=True, array_like=True):
    """An input, by its digest, that is refused until then (Unix seconds)."""

    digest: bytes
    until: float


class VersionRoute(msgspec.Struct, frozen=True, array_like=True):
    """A deployed version. Routable while `endpoints` is not empty. `metadata` is the OIP model metadata's
    ``inputs``/``outputs`` as JSON, e.g. ``{"inputs":[...],"outputs":[...]}``."""

    version: int
    endpoints: tuple[Endpoint, ...]
    engine: str
    metadata: bytes
    quarantined: tuple[Quarantined, ...] = ()


class Slots(msgspec.Struct, frozen=True, array_like=True):
    """Hash slots [start of this range, `end`) go to `version`; ranges stand in order and end at `SLOTS`."""

    end: int
    version: int


class Override(msgspec.Struct, frozen=True, array_like=True):
    """All requests of `tenant` go to `version`, before any hashing."""

    tenant: int
    version: int


class Alias(msgspec.Struct, frozen=True, array_like=True):
    """Another name of a version in URLs: ``/versions/champion/infer``."""

    name: str
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
    aliases: tuple[Alias, ...] = ()


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


class State:
    """The whole state, each part by its identity, so that a change costs what it changes and no more."""

    __slots__ = ("anonymous_tenant", "epoch", "keys", "models", "replicas", "tenants")

    def __init__(self) -> None:
        self.epoch = 0
        self.tenants: dict[int, TenantRoute] = {}
        self.keys: dict[bytes, KeyRoute] = {}
        self.replicas: dict[str, ReplicaRoute] = {}
        self.models: dict[str, ModelRoute] = {}
        self.anonymous_tenant = -1

    def against(self, change: Snapshot) -> Snapshot:
        """`change` as one against this state: for a whole one, what it replaces, adds and leaves out. Raises
        ValueError when it builds on another epoch than this one's."""
        if change.base == 0:
            return Snapshot(
                change.epoch,
                self.epoch,
                tuple(t for t in change.tenants if self.tenants.get(t.index) != t),
                tuple(k for k in change.keys if self.keys.get(k.digest) != k),
                tuple(r for r in change.replicas if self.replicas.get(r.id) != r),
                tuple(m for m in change.models if self.models.get(m.id) != m),
                tuple(self.tenants.keys() - {t.index for t in change.tenants}),
                tuple(self.keys.keys() - {k.digest for k in change.keys}),
                tuple(self.replicas.keys() - {r.id for r in change.replicas}),
                tuple(self.models.keys() - {m.id for m in change.models}),
                anonymous_tenant=change.anonymous_tenant,
            )
        if change.base != self.epoch:
            raise ValueError(f"change builds on epoch {change.base}, this is {self.epoch}")
        return change

    def apply(self, change: Snapshot) -> None:
        """Become the state after `change`. Raises ValueError as `against` does."""
        change = self.against(change)
        self.tenants.update((t.index, t) for t in change.tenants)
        self.keys.update((k.digest, k) for k in change.keys)
        self.replicas.update((r.id, r) for r in change.replicas)
        self.models.update((m.id, m) for m in change.models)
        for index in change.removed_tenants:
            self.tenants.pop(index, None)
        for digest in change.removed_keys:
            self.keys.pop(digest, None)
        for replica in change.removed_replicas:
            self.replicas.pop(replica, None)
        for model in change.removed_models:
            self.models.pop(model, None)
        self.epoch, self.anonymous_tenant = change.epoch, change.anonymous_tenant

    def whole(self) -> Snapshot:
        """As one message, in the order of the identities."""
        return Snapshot(
            self.epoch,
            0,
            tuple(self.tenants[index] for index in sorted(self.tenants)),
            tuple(self.keys[digest] for digest in sorted(self.keys)),
            tuple(self.replicas[replica] for replica in sorted(self.replicas)),
            tuple(self.models[model] for model in sorted(self.models)),
            anonymous_tenant=self.anonymous_tenant,
        )
