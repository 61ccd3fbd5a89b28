"""The routing table: a snapshot compiled for the request path, so that a request costs dictionary look-ups only.

`Table.update` takes the next snapshot and compiles again only the models that changed; tenants' live counts, arms'
telemetry cells and links to replicas carry over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from urllib.parse import quote

from headrace.core.snapshot import ModelRoute, Snapshot, TenantRoute, VersionRoute
from headrace.router.link import Arm, ReplicaLink, Tenant
from headrace.traffic.decide import Decide, compile_policy

SEEN_MAX = 100_000


class Target:
    """A model as one caller may reach it: the decision and what it needs."""

    __slots__ = ("arms", "decide", "model")

    def __init__(self, model: ModelRoute, arms: dict[int, Arm], decide: Decide[Arm | None]) -> None:
        self.model = model
        self.arms = arms
        self.decide = decide


Route = dict[int, Target]
"""Tenant index -> what the URL means for it."""


class Table:
    """All that a router knows, ready for look-up.

    Args:
        make_link: makes a link to a replica's address.
    """

    def __init__(self, make_link: Callable[[str, str], ReplicaLink]) -> None:
        self.snapshot = Snapshot(0, 0)
        self.routes: dict[bytes, Route] = {}
        self.links: dict[str, ReplicaLink] = {}
        self.tenants: dict[int, Tenant] = {}
        self.roles: dict[int, str] = {}
        self.seen: dict[bytes | None, Tenant] = {}
        self.body_max = 64 << 20
        self._keys: dict[bytes, tuple[int, str]] = {}
        self._arms: dict[tuple[str, int], Arm] = {}
        self._urls: dict[str, list[bytes]] = {}
        self._by_name: dict[str, dict[str, ModelRoute]] = {}
        self._make_link = make_link

    def links_for(self, snapshot: Snapshot) -> list[ReplicaLink]:
        """Open links to the replicas that are new in `snapshot`; returns those."""
        fresh = []
        for replica in snapshot.replicas:
            if replica.id not in self.links:
                self.links[replica.id] = self._make_link(replica.id, replica.address)
                fresh.append(self.links[replica.id])
        return fresh

    def update(self, new: Snapshot) -> None:
        """Serve by `new` (whole) from now on."""
        old, self.snapshot = self.snapshot, new
        self.links_for(new)
        for tenant in new.tenants:
            self._update_tenant(tenant)
        self._keys = {key.digest: (key.tenant, key.role) for key in new.keys}
        old_models = {m.id: m for m in old.models}
        new_models = {m.id: m for m in new.models}
        names = {
            (new_models.get(i) or old_models[i]).name
            for i in old_models.keys() | new_models.keys()
            if old_models.get(i) is not new_models.get(i) and old_models.get(i) != new_models.get(i)
        }
        for name in names:
            self._by_name.pop(name, None)
        for model in new.models:
            if model.name in names:
                self._by_name.setdefault(model.name, {})[model.id] = model
        for name in names:
            self._compile(name)
        self.body_max = max([m.body_max_bytes for m in new.models], default=64 << 20)
        self.seen = {}
        if new.anonymous_tenant >= 0 and new.anonymous_tenant in self.tenants:
            self.seen[None] = self.tenants[new.anonymous_tenant]
        alive = {replica.id for replica in new.replicas}
        for gone in self.links.keys() - alive:
            self.links.pop(gone).retire()

    def tenant_of(self, authorization: bytes | None) -> Tenant | None:
        """Whom a key names: hash it once, remember it. None for no key or one that nobody holds."""
        found = self.key_of(authorization)
        if found is None:
            return None
        tenant = self.tenants.get(found[0])
        if tenant is not None and len(self.seen) < SEEN_MAX:
            self.seen[authorization] = tenant
        return tenant

    def key_of(self, authorization: bytes | None) -> tuple[int, str] | None:
        """(tenant index, role) of a key. Digests of the whole text are looked up, never the text: timing tells
        nothing of a secret."""
        if authorization is None or authorization[:7].lower() != b"bearer ":
            return None
        return self._keys.get(hashlib.sha256(authorization[7:].strip()).digest())

    def visible(self, tenant: int) -> list[ModelRoute]:
        """The models that a tenant may call."""
        return [m for m in self.snapshot.models if m.tenant == tenant or tenant in m.grants]

    def find(self, name: str, tenant: int) -> Target | None:
        """The target of a model's name for a tenant."""
        return self.routes.get(f"/v2/models/{quote(name, safe='')}/infer".encode(), {}).get(tenant)

    def _update_tenant(self, route: TenantRoute) -> None:
        tenant = self.tenants.get(route.index)
        if tenant is None:
            tenant = self.tenants[route.index] = Tenant(route.index, route.name)
        tenant.limit(route.rate_per_s, route.burst, route.max_in_flight)

    def _compile(self, name: str) -> None:
        """Make the routes of all models of one name."""
        for url in self._urls.pop(name, []):
            self.routes.pop(url, None)
        urls: dict[bytes, Route] = {}
        for model in sorted(self._by_name.get(name, {}).values(), key=lambda m: m.id):
            arms = {v.version: self._arm(model, v) for v in model.versions if v.endpoints}
            overrides = {o.tenant: o.version for o in model.overrides}
            target = Target(model, arms, compile_policy(model.split, arms, overrides, model.salt))
            fixed = {v.version: Target(model, arms, fixed_decision(arms.get(v.version))) for v in model.versions}
            for caller in (model.tenant, *model.grants):
                for public in (name, model.id):
                    if public == name and caller != model.tenant and self._owns(name, caller):
                        continue  # its own model of this name comes first
                    base = f"/v2/models/{quote(public, safe='')}".encode()
                    urls.setdefault(base + b"/infer", {}).setdefault(caller, target)
                    for version, one in fixed.items():
                        urls.setdefault(base + b"/versions/%d/infer" % version, {}).setdefault(caller, one)
        self.routes.update(urls)
        self._urls[name] = list(urls)

    def _owns(self, name: str, tenant: int) -> bool:
        return any(m.tenant == tenant for m in self._by_name.get(name, {}).values())

    def _arm(self, model: ModelRoute, version: VersionRoute) -> Arm:
        key = (model.id, version.version)
        arm = self._arms.get(key)
        if arm is None:
            arm = self._arms[key] = Arm(model.id, version.version)
        arm.idempotent = model.idempotent
        arm.endpoints = [(self.links[e.replica], e.slot) for e in version.endpoints if e.replica in self.links]
        return arm

    @property
    def arms(self) -> list[Arm]:
        """Every version that was ever routed to."""
        return list(self._arms.values())


def fixed_decision(arm: Arm | None) -> Decide[Arm | None]:
    """The decision where the request itself names the version."""
    return lambda tenant, unit: arm
