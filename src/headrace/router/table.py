"""The routing table: a snapshot compiled for the request path, so that a request costs dictionary look-ups only.

`Table.update` takes the next snapshot and does again only what changed, so that its time does not grow with the number
of models; tenants' live counts, arms' telemetry cells and links to replicas carry over.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from urllib.parse import quote

from headrace.core.snapshot import ModelRoute, Snapshot, State, TenantRoute, VersionRoute
from headrace.router.guard import Guards
from headrace.router.link import Arm, ReplicaLink, Tenant
from headrace.traffic.decide import Decide, compile_policy

SEEN_MAX = 100_000
BODY_MAX = 64 << 20
"""Bytes of a body where there is no model that could say."""


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
        guards: of the versions with inputs that are in quarantine.
    """

    def __init__(self, make_link: Callable[[str, str], ReplicaLink], guards: Guards | None = None) -> None:
        self.snapshot = State()
        self.routes: dict[bytes, Route] = {}
        self.links: dict[str, ReplicaLink] = {}
        self.retired: list[ReplicaLink] = []
        """Links to replicas that are out of the snapshot, and on which requests still wait."""
        self.tenants: dict[int, Tenant] = {}
        self.roles: dict[int, str] = {}
        self.seen: dict[bytes | None, Tenant] = {}
        self.body_max = BODY_MAX
        self._body_sizes: Counter[int] = Counter()
        """How many models have each limit."""
        self._arms: dict[tuple[str, int], Arm] = {}
        self._urls: dict[str, list[bytes]] = {}
        self._by_name: dict[str, dict[str, ModelRoute]] = {}
        self._make_link = make_link
        self._guards = guards or Guards()

    def links_for(self, change: Snapshot) -> list[ReplicaLink]:
        """Open links to the replicas that are new in `change`; returns those."""
        fresh = []
        for replica in change.replicas:
            if replica.id not in self.links:
                self.links[replica.id] = self._make_link(replica.id, replica.address)
                fresh.append(self.links[replica.id])
        return fresh

    def update(self, change: Snapshot) -> None:
        """Serve by `change`, whole or against the epoch that we serve by, from now on. Raises ValueError when it builds
        on another epoch."""
        state = self.snapshot
        change = state.against(change)
        self.links_for(change)
        for tenant in change.tenants:
            self._update_tenant(tenant)
        for index in change.removed_tenants:
            self.tenants.pop(index, None)
        old = [
            state.models[id_] for id_ in (*(m.id for m in change.models), *change.removed_models) if id_ in state.models
        ]
        who = change.tenants or change.removed_tenants or change.keys or change.removed_keys
        forget = bool(who) or change.anonymous_tenant != state.anonymous_tenant
        state.apply(change)
        self._update_models(old, change.models)
        if forget:
            self.seen = {}
            if state.anonymous_tenant in self.tenants:
                self.seen[None] = self.tenants[state.anonymous_tenant]
        for gone in change.removed_replicas:
            if (link := self.links.pop(gone, None)) is not None:
                link.retire()
                self.retired.append(link)

    def _update_models(self, old: Sequence[ModelRoute], new: Sequence[ModelRoute]) -> None:
        """Compile what has changed, with the other models of the same names: a tenant's own hides a granted one."""
        for model in old:
            self._by_name[model.name].pop(model.id)
            self._body_sizes[model.body_max_bytes] -= 1
        for model in new:
            self._by_name.setdefault(model.name, {})[model.id] = model
            self._body_sizes[model.body_max_bytes] += 1
        for name in {model.name for model in (*old, *new)}:
            self._compile(name)
        self._body_sizes = +self._body_sizes
        self.body_max = max(self._body_sizes, default=BODY_MAX)

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
        key = self.snapshot.keys.get(hashlib.sha256(authorization[7:].strip()).digest())
        return None if key is None else (key.tenant, key.role)

    def visible(self, tenant: int) -> list[ModelRoute]:
        """The models that a tenant may call."""
        return [m for m in self.snapshot.models.values() if m.tenant == tenant or tenant in m.grants]

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
        models = self._by_name[name]
        for model in sorted(models.values(), key=lambda m: m.id):
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
                    for alias in model.aliases:
                        if (pointed := fixed.get(alias.version)) is not None:
                            urls.setdefault(base + b"/versions/%b/infer" % alias.name.encode(), {}).setdefault(
                                caller, pointed
                            )
        self.routes.update(urls)
        if models:
            self._urls[name] = list(urls)
        else:
            del self._by_name[name]

    def _owns(self, name: str, tenant: int) -> bool:
        return any(m.tenant == tenant for m in self._by_name[name].values())

    def _arm(self, model: ModelRoute, version: VersionRoute) -> Arm:
        key = (model.id, version.version)
        arm = self._arms.get(key)
        if arm is None:
            arm = self._arms[key] = Arm(model.id, version.version)
        arm.idempotent = model.idempotent
        self._guards.told(arm, version.quarantined)
        known = [e for e in version.endpoints if e.replica in self.links]
        arm.endpoints = [(self.links[e.replica], e.slot) for e in known if not e.standby]
        arm.spares = [(self.links[e.replica], e.slot) for e in known if e.standby]
        return arm

    @property
    def arms(self) -> list[Arm]:
        """Every version that is routed to, or was and has not told all of it."""
        return list(self._arms.values())

    def forget_unrouted(self, arm: Arm) -> None:
        """Drop a version with nothing to tell, if no request can come to it and none waits in it, or before its guard:
        those go to the replica that comes in place of one that has died."""
        if arm.guard is not None:
            return
        model = self.snapshot.models.get(arm.model)
        if model is not None and any(v.version == arm.version and v.endpoints for v in model.versions):
            return
        links = (*self.links.values(), *self.retired)
        if not any(waiting[6] is arm for link in links for waiting in link.waiting.values()):
            self._arms.pop((arm.model, arm.version), None)


def fixed_decision(arm: Arm | None) -> Decide[Arm | None]:
    """The decision where the request itself names the version."""
    return lambda tenant, unit: arm
