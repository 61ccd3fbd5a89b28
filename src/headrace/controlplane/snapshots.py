"""Routing snapshots out of the store's state and the replicas that are ready, advanced by what has changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from headrace.controlplane.accounts import KeyRow, TenantRow
from headrace.controlplane.routing_state import NOTHING, ModelState, RoutingState
from headrace.core.snapshot import (
    Alias,
    Endpoint,
    KeyRoute,
    ModelRoute,
    Override,
    ReplicaRoute,
    Snapshot,
    State,
    TenantRoute,
    VersionRoute,
)
from headrace.core.specs import CatalogKey, ReplicaStatus
from headrace.deploy import packs
from headrace.deploy.reconcile import Target

Packed = dict[Target, list[tuple[int, Endpoint]]]
"""Version -> the packs that serve it, by number, and where."""
NOTHING_PACKED: Packed = {}


class Snapshots:
    """The snapshot as it is, and how it came to be.

    Args:
        anonymous: name of the tenant that requests without a key belong to; empty: none.
    """

    def __init__(self, anonymous: str) -> None:
        self.current = State()
        self._anonymous = anonymous
        self._state = NOTHING
        self._ready: dict[str, ReplicaStatus] = {}
        self._numbers: dict[str, int] = {}
        self._packed: Packed = {}

    def advance(
        self,
        state: RoutingState,
        ready: Iterable[ReplicaStatus],
        epoch: int,
        leaving: Collection[tuple[str, CatalogKey]] = (),
    ) -> Snapshot | None:
        """Become what `state` (later than the last one) and the `ready` replicas, oldest first, say; packs without the
        versions that are `leaving` them.

        Returns:
            The change, under `epoch`; None where there is none, and the epoch stays.
        """
        changed = state.changed_since(self._state.revision)
        now = {status.spec.id: status for status in ready}
        come = [status for id_, status in now.items() if id_ not in self._ready]
        gone = [status for id_, status in self._ready.items() if id_ not in now]
        self._numbers.update((state.models[int(id_)].id, int(id_)) for id_ in changed["model"])
        touched = {served.model for status in (*come, *gone) for served in status.spec.versions}
        packed = packed_in(now.values(), leaving)
        touched |= {t[0] for t in packed.keys() | self._packed.keys() if packed.get(t) != self._packed.get(t)}
        models = {int(id_) for id_ in changed["model"]}
        models |= {self._numbers[name] for name in touched if name in self._numbers}
        served = endpoints_of(now.values(), {state.models[model].id for model in models}, packed)
        old = self.current
        tenants = [tenant_route(state.tenants[int(index)]) for index in changed["tenant"]]
        keys = [key_route(state.keys[id_]) for id_ in changed["key"] if id_ in state.keys]
        routes = [model_route(state.models[model], served) for model in models]
        change = Snapshot(
            epoch,
            old.epoch,
            tuple(t for t in tenants if old.tenants.get(t.index) != t),
            tuple(k for k in keys if old.keys.get(k.digest) != k),
            tuple(ReplicaRoute(status.spec.id, status.address or status.spec.address) for status in come),
            tuple(m for m in routes if old.models.get(m.id) != m),
            removed_keys=tuple(
                self._state.keys[id_].digest
                for id_ in changed["key"]
                if id_ in self._state.keys and id_ not in state.keys
            ),
            removed_replicas=tuple(status.spec.id for status in gone),
            anonymous_tenant=self._anonymous_tenant(state) if changed["tenant"] else old.anonymous_tenant,
        )
        self._state, self._ready, self._packed = state, now, packed
        nothing = Snapshot(epoch, old.epoch, anonymous_tenant=old.anonymous_tenant)
        if change == nothing and old.epoch:
            return None
        old.apply(change)
        return change

    def _anonymous_tenant(self, state: RoutingState) -> int:
        return next((t.index for t in state.tenants.values() if t.name == self._anonymous), -1)


def tenant_route(row: TenantRow) -> TenantRoute:
    """A tenant's limits; none are left to one that is suspended."""
    rate = row.rate_per_s if row.state == "active" else 0.0
    return TenantRoute(row.index, row.name, rate, row.burst, row.max_in_flight)


def key_route(row: KeyRow) -> KeyRoute:
    """A key."""
    return KeyRoute(row.digest, row.tenant, row.role)


def model_route(state: ModelState, endpoints: dict[Target, list[Endpoint]]) -> ModelRoute:
    """A model, its deployed versions with where they are served, and its policy."""
    row = state.row
    versions = []
    for one in state.deployments:
        version = state.versions[one.version]
        where = tuple(endpoints.get((state.id, one.version), ()))
        refused = state.quarantined.get(one.version, ())
        signature = msgspec.json.encode(version.signature)
        versions.append(VersionRoute(one.version, where, version.engine, signature, refused))
    return ModelRoute(
        state.id,
        row.name,
        row.tenant,
        state.grants,
        tuple(versions),
        state.policy.epoch,
        state.policy.split,
        tuple(Override(tenant, version) for tenant, version in sorted(state.pins.items())),
        row.salt,
        row.idempotent,
        row.timeout_s,
        row.body_max_bytes,
        tuple(Alias(name, version) for name, version in sorted(state.aliases.items())),
    )


def packed_in(ready: Iterable[ReplicaStatus], leaving: Collection[tuple[str, CatalogKey]]) -> Packed:
    """What the packs among the ready replicas serve."""
    found: Packed = {}
    for pack, entry in packs.serving([status for status in ready if status.spec.pack is not None], leaving):
        assert pack.spec.pack is not None
        where = (pack.spec.pack.number, Endpoint(pack.spec.id, entry.slot))
        found.setdefault((entry.model, entry.version), []).append(where)
    return found


def endpoints_of(
    ready: Iterable[ReplicaStatus], models: set[str], packed: Packed = NOTHING_PACKED
) -> dict[Target, list[Endpoint]]:
    """(``tenant/name``, version) of these models -> where it is served."""
    found: dict[Target, list[Endpoint]] = {}
    for status in ready:
        for served in status.spec.versions:
            if served.model in models:
                found.setdefault((served.model, served.version), []).append(Endpoint(status.spec.id, served.slot))
    for target, where in packed.items():
        if target[0] in models:
            found[target] = found.get(target, []) + packs.endpoints(target, where, target in found)
    return found
