"""The use cases behind the API: each checks who asks, changes the store in one transaction together with its audit
row, has the routers follow, and says how far they have."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from headrace.controlplane import accounts, changes
from headrace.controlplane.accounts import TenantRow
from headrace.controlplane.artifacts import Artifacts
from headrace.controlplane.changes import Record
from headrace.controlplane.ports import Fleet, Routing, Telemetry
from headrace.controlplane.store import Store
from headrace.core.database import now
from headrace.core.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    Unauthenticated,
    Unprocessable,
)
from headrace.core.names import check_name, parse_reference
from headrace.core.resources import ROLES, ChangeRef, DeploymentCreate, Engine, Role, TrafficUpdate, VersionCreate
from headrace.core.snapshot import SLOTS
from headrace.core.specs import Examination, ExaminationRequest
from headrace.deploy import store as deploy_store
from headrace.deploy.reconcile import Standing, Target
from headrace.registry import inventory, registration
from headrace.registry import store as registry
from headrace.registry.examiner import Examiner
from headrace.registry.store import ModelRow, VersionRow
from headrace.traffic import store as traffic
from headrace.traffic.allocate import allocate, weights_of

REPLICAS_MAX = 256
VERSION_MAX = 1 << 31
SHARE_MIN = 100 / SLOTS
"""Percent: the smallest share of the traffic."""
log = logging.getLogger("headrace.controlplane.platform")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks."""

    key: str
    tenant: TenantRow
    role: Role

    def need(self, role: Role) -> None:
        """Raises Forbidden unless this is `role` or more."""
        if ROLES.index(self.role) < ROLES.index(role):
            raise Forbidden(f"this needs the role {role}, the key {self.key} has {self.role}")


@dataclass(frozen=True, slots=True)
class Request:
    """What every mutation brings: who, for which tenant, why, and its idempotency key."""

    principal: Principal
    tenant: str | None = None
    reason: str | None = None
    idempotency_key: str | None = None
    digest: bytes = b""
    """Of the whole HTTP request: the same key with another one is refused."""


class Platform:
    """The use cases."""

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        examiner: Examiner,
        routing: Routing,
        fleet: Fleet,
        telemetry: Telemetry,
        standings: Callable[[], dict[Target, Standing]],
    ) -> None:
        self.store = store
        self.artifacts = artifacts
        self.examiner = examiner
        self.routing = routing
        self.fleet = fleet
        self.telemetry = telemetry
        self.standings = standings

    # ------------------------------------------------------------------------------------------------ who and what
    async def authenticate(self, authorization: str | None) -> Principal:
        """Whom an Authorization header names. Raises Unauthenticated."""
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise Unauthenticated("no API key: send Authorization: Bearer hr_...")

        def find(c: Connection) -> Principal:
            key = accounts.key_by_text(c, text.strip())
            if key is None:
                raise Unauthenticated("nobody holds this API key")
            tenant = next(t for t in accounts.list_tenants(c) if t.index == key.tenant)
            if tenant.state != "active":
                raise Forbidden(f"tenant {tenant.name!r} is suspended")
            return Principal(key.id, tenant, key.role)

        return await self.store.run(find)

    @staticmethod
    def tenant(c: Connection, request: Request) -> TenantRow:
        """The tenant whose resources are meant. Raises Forbidden, NotFound."""
        name = request.tenant
        if name is None or name == request.principal.tenant.name:
            return request.principal.tenant
        if request.principal.role != "admin":
            raise Forbidden(f"tenant {name!r}: only an admin reaches other tenants' resources", field="tenant")
        found = accounts.find_tenant(c, name)
        if found is None:
            raise NotFound(f"tenant {name!r} does not exist", field="tenant", hint=f"headrace tenants create {name}")
        return found

    def model(self, c: Connection, request: Request, name: str) -> tuple[TenantRow, ModelRow]:
        """A model and its tenant. Raises NotFound."""
        tenant = self.tenant(c, request)
        found = registry.find_model(c, tenant.index, name)
        if found is None:
            raise NotFound(
                f"model {name!r} does not exist in tenant {tenant.name!r}",
                field="model",
                hint=f"headrace models push {name} FILE",
            )
        return tenant, found

    @staticmethod
    def version(c: Connection, model: ModelRow, number: int | None) -> VersionRow:
        """A version, the latest for None. Raises NotFound."""
        latest = registry.latest_version(c, model.id)
        wanted = (latest or 0) if number is None else number
        found = registry.find_version(c, model.id, wanted) if 0 < wanted < VERSION_MAX else None
        if found is None:
            hint = f"the latest is {model.name}@{latest}" if latest else None
            what = "no version yet" if number is None else f"no version {number}"
            raise NotFound(f"model {model.name!r} has {what}", field="version", hint=hint)
        return found

    async def mutate(self, request: Request, work: Callable[[Connection], Record]) -> ChangeRef:
        """Do `work` and write its record in one transaction, once per idempotency key; then publish."""
        actor, key = request.principal.key, request.idempotency_key

        def transaction(c: Connection) -> tuple[int, str | None]:
            if key is not None and (before := changes.replayed(c, actor, key, request.digest)) is not None:
                return before, changes.undo_of(c, before)
            record = work(c)
            if record.changed:
                change = changes.append(c, actor, record, request.reason)
            else:
                change = changes.last(c, record.tenant, record.entity)
            if key is not None:
                changes.remember(c, actor, key, request.digest, change)
            return change, record.undo if record.changed else None

        change, undo = await self.store.run(transaction)
        self.fleet.wake()
        try:
            effect = await self.routing.publish()
        except Exception:
            # The change is committed: to say that it failed would be a lie. It goes out with the next publication.
            log.exception("change %d is stored and could not be published", change)
            return ChangeRef(change, undo, False)
        return ChangeRef(change, undo, effect.effective, round(effect.milliseconds, 3))

    # ------------------------------------------------------------------------------------------------ registry
    async def register(self, request: Request, name: str, body: VersionCreate) -> tuple[int, ChangeRef]:
        """Register a version; returns its number. Raises InvalidInput, NotFound, Unprocessable."""
        request.principal.need("developer")
        check_name(name, "model")
        engine = registration.check(body)
        async with self.artifacts.using(body.digest) as size:
            known = await self.store.run(lambda c: self._same_as_latest(c, request, name, engine, body))
            if known is not None:
                return await self._known(request, name, known)
            async with self.artifacts.local(body.digest, size) as path:
                asked = ExaminationRequest(engine, str(path), body.options, body.signature)
                found = await self.examiner.examine(asked)
            return await self._store_version(request, name, engine, size, body, found)

    async def _store_version(
        self, request: Request, name: str, engine: Engine, size: int, body: VersionCreate, found: Examination
    ) -> tuple[int, ChangeRef]:
        if found.fault is not None:
            raise Unprocessable(found.fault.message, field=found.fault.field, hint=found.fault.hint)
        signature, options = found.signature, found.options
        assert signature is not None and options is not None

        def work(c: Connection) -> Record:
            tenant = self.tenant(c, request)
            known = self._same_as_latest(c, request, name, engine, body)
            if known is not None:  # pushed by somebody else while it was examined
                return Record("version.register", tenant.name, f"{name}@{known}", changed=False)
            if not inventory.is_kept(c, body.digest):  # by another control plane, while it was examined
                raise NotFound(f"digest: artifact {body.digest[:12]}... was just removed", field="digest")
            model = registry.ensure_model(c, tenant.index, name)
            number = (registry.latest_version(c, model.id) or 0) + 1
            registry.add_version(
                c,
                VersionRow(
                    model.id,
                    number,
                    engine,
                    body.digest,
                    size,
                    body.file_name,
                    signature,
                    options,
                    body.metrics,
                    body.tags,
                    body.description,
                    now(),
                    request.principal.key,
                ),
            )
            return Record("version.register", tenant.name, f"{name}@{number}", None, {"digest": body.digest})

        change = await self.mutate(request, work)
        return await self._version_of(change), change

    async def _version_of(self, change: ChangeRef) -> int:
        """Which version a change was about. Asked of the record: a replay is about the version of the first time."""
        written = await self.store.run(lambda c: changes.find(c, change.id))
        assert written is not None
        return int(written.entity.rpartition("@")[2])

    async def _known(self, request: Request, name: str, number: int) -> tuple[int, ChangeRef]:
        """What a push that changes nothing answers: the change that made the version."""

        def read(c: Connection) -> ChangeRef:
            return ChangeRef(changes.last(c, self.tenant(c, request).name, f"{name}@{number}", "version.register"))

        return number, await self.store.run(read)

    def _same_as_latest(
        self, c: Connection, request: Request, name: str, engine: Engine, body: VersionCreate
    ) -> int | None:
        """The latest version's number where it is what `body` would make again."""
        model = registry.find_model(c, self.tenant(c, request).index, name)
        latest = registry.latest_version(c, model.id) if model is not None else None
        row = registry.find_version(c, model.id, latest) if model is not None and latest is not None else None
        if row is None or (row.digest, row.engine) != (body.digest, engine):
            return None
        same = body.options is None or body.options == row.options
        return row.version if same and (body.signature is None or body.signature == row.signature) else None

    # ------------------------------------------------------------------------------------------------ deployments
    async def deploy(self, request: Request, body: DeploymentCreate) -> tuple[str, int, ChangeRef]:
        """Want a version to run; returns model, version and the change."""
        request.principal.need("operator")
        reference = parse_reference(body.model)
        number = reference.version if body.version is None else body.version
        share = body.traffic_percent
        check_range("replicas", body.replicas, 0, REPLICAS_MAX)
        check_range("threads", body.threads, 1, 256)
        if share is not None and not (share == 0 or SHARE_MIN <= share <= 100):
            expected = f"expected 0, or {SHARE_MIN:g} to 100"
            raise InvalidInput(f"traffic_percent: {share:g}, {expected}", field="traffic_percent")

        def work(c: Connection) -> Record:
            tenant, model = self.model(c, request, reference.model)
            version = self.version(c, model, number).version
            entity = f"{reference.model}@{version}"
            before = deploy_store.find(c, model.id, version)
            deploy_store.create(c, model.id, version, body.replicas, body.threads, share)
            undo = f"headrace scale {entity} {before.replicas}" if before else f"headrace undeploy {entity}"
            after = {"replicas": body.replicas, "threads": body.threads, "traffic_percent": share}
            shown = {"replicas": before.replicas, "threads": before.threads} if before else None
            return Record("deployment.create", tenant.name, entity, shown, after, undo)

        change = await self.mutate(request, work)
        return reference.model, await self._version_of(change), change

    async def scale(self, request: Request, name: str, version: int, replicas: int) -> ChangeRef:
        """Want another number of replicas."""
        request.principal.need("operator")
        check_range("replicas", replicas, 0, REPLICAS_MAX)
        entity = f"{name}@{version}"

        def work(c: Connection) -> Record:
            tenant, model = self.model(c, request, name)
            before = self.deployment(c, model, version)
            deploy_store.scale(c, before, replicas)
            undo = f"headrace scale {entity} {before.replicas}"
            return Record(
                "deployment.scale", tenant.name, entity, {"replicas": before.replicas}, {"replicas": replicas}, undo
            )

        return await self.mutate(request, work)

    async def undeploy(self, request: Request, name: str, version: int) -> tuple[ChangeRef, str]:
        """Want a version to run no more; returns the change and when the deployment was made. Raises Conflict while
        it has traffic and others could take it."""
        request.principal.need("operator")
        entity = f"{name}@{version}"

        def work(c: Connection) -> Record:
            tenant, model = self.model(c, request, name)
            before = self.deployment(c, model, version)
            weights = weights_of(traffic.current(c, model.id).split)
            if weights.get(version, 0) > 0 and len([d for d in deploy_store.list_all(c) if d.model == model.id]) > 1:
                raise Conflict(
                    f"{entity} has {weights[version]:g} % of the traffic",
                    field="version",
                    hint=f"give it to another version first: headrace traffic set {name} VERSION=100",
                )
            if version in traffic.list_overrides(c).get(model.id, {}).values():
                raise Conflict(f"{entity}: a tenant is pinned to it", hint=f"headrace traffic unpin {name} TENANT")
            deploy_store.remove(c, model.id, version)
            undo = f"headrace deploy {entity} --replicas {before.replicas}"
            shown = {"replicas": before.replicas, "threads": before.threads, "created_at": before.created_at}
            return Record("deployment.remove", tenant.name, entity, shown, None, undo)

        change = await self.mutate(request, work)
        written = await self.store.run(lambda c: changes.find(c, change.id))
        assert written is not None and written.before is not None
        return change, str(written.before["created_at"])

    @staticmethod
    def deployment(c: Connection, model: ModelRow, version: int) -> deploy_store.Desired:
        """A desired deployment. Raises NotFound."""
        found = deploy_store.find(c, model.id, version)
        if found is None:
            raise NotFound(
                f"{model.name}@{version} is not deployed",
                field="version",
                hint=f"headrace deploy {model.name}@{version}",
            )
        return found

    # ------------------------------------------------------------------------------------------------ traffic
    async def set_weights(self, request: Request, name: str, body: TrafficUpdate, expected: int | None) -> ChangeRef:
        """Put a split in force. Raises InvalidInput, Conflict, PreconditionFailed."""
        request.principal.need("operator")
        weights: dict[int, float] = {}
        for text, percent in body.weights.items():
            if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < 1:
                raise InvalidInput(f"weights: {text[:40]!r} is no version number", field="weights")
            weights[int(text)] = percent

        def work(c: Connection) -> Record:
            tenant, model = self.model(c, request, name)
            before = traffic.current(c, model.id)
            if expected is not None and expected != before.epoch:
                raise PreconditionFailed(
                    f"If-Match: the policy is at epoch {before.epoch}, not {expected}", field="if-match"
                )
            split = allocate(before.split, weights)
            for version, percent in weights.items():
                if percent > 0:
                    self.must_be_ready(c, tenant, model, version)
            traffic.append(c, model.id, split)
            deploy_store.mark_traffic(c, model.id, set(weights_of(split)))
            return Record(
                "traffic.set",
                tenant.name,
                name,
                {"weights": shown(weights_of(before.split))},
                {"weights": shown(weights_of(split))},
                f"headrace rollback {name}",
            )

        return await self.mutate(request, work)

    async def rollback(self, request: Request, name: str) -> ChangeRef:
        """Put back what the split in force replaced (`traffic.previous`). Raises Conflict when there is none."""
        request.principal.need("operator")

        def work(c: Connection) -> Record:
            tenant, model = self.model(c, request, name)
            before = traffic.current(c, model.id)
            back = traffic.previous(c, model.id)
            if back is None:
                raise Conflict(f"model {name!r}: there is no earlier traffic policy to go back to", field="model")
            for version in weights_of(back.split):
                self.must_be_ready(c, tenant, model, version)
            traffic.roll_back(c, model.id)
            deploy_store.mark_traffic(c, model.id, set(weights_of(back.split)))
            return Record(
                "traffic.rollback",
                tenant.name,
                name,
                {"weights": shown(weights_of(before.split))},
                {"weights": shown(weights_of(back.split))},
                f"headrace rollback {name}",
            )

        return await self.mutate(request, work)

    async def pin(self, request: Request, name: str, pinned: str, version: int | None) -> ChangeRef:
        """Pin a tenant to a version, or with None let it go."""
        request.principal.need("operator")
        action = "traffic.pin" if version is not None else "traffic.unpin"

        def work(c: Connection) -> Record:
            tenant, model = self.model(c, request, name)
            who = accounts.find_tenant(c, pinned)
            if who is None:
                raise NotFound(f"tenant {pinned!r} does not exist", field="tenant")
            if version is not None:
                self.must_be_ready(c, tenant, model, version)
            before = traffic.set_override(c, model.id, who.index, version)
            if version is None and before is None:
                raise NotFound(f"tenant {pinned!r} is not pinned", field="tenant")
            if version is not None:
                deploy_store.mark_traffic(c, model.id, {version})
            undo = f"headrace traffic pin {name} {pinned} {before}" if before else None
            undo = undo or f"headrace traffic unpin {name} {pinned}"
            return Record(
                action,
                tenant.name,
                name,
                {"tenant": pinned, "version": before},
                {"tenant": pinned, "version": version},
                undo,
            )

        return await self.mutate(request, work)

    def must_be_ready(self, c: Connection, tenant: TenantRow, model: ModelRow, version: int) -> None:
        """Raises NotFound or Conflict unless a replica of the version is ready."""
        self.version(c, model, version)
        entity = f"{model.name}@{version}"
        standing = self.standings().get((f"{tenant.name}/{model.name}", version))
        if standing is None:
            raise Conflict(f"{entity} is not deployed", field="weights", hint=f"headrace deploy {entity}")
        if standing.ready < 1:
            raise Conflict(f"{entity} is not ready: {standing.state}, {standing.detail}", field="weights")


def check_range(field: str, value: int, least: int, most: int) -> None:
    """Raises InvalidInput outside [least, most]."""
    if not least <= value <= most:
        raise InvalidInput(f"{field}: {value}, expected {least} to {most}", field=field)


def shown(weights: dict[int, float]) -> dict[str, float]:
    """Weights as the API has them."""
    return {str(version): round(percent, 4) for version, percent in sorted(weights.items())}
