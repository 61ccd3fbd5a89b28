"""The use cases behind the API: each checks who asks, changes the store in one transaction together with its audit
row, has the routers follow, and says how far they have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec
from sqlalchemy import Connection

from headrace.controlplane import accounts, changes, views
from headrace.controlplane.accounts import TenantRow
from headrace.controlplane.changes import Record
from headrace.controlplane.ports import Fleet, Routing, Telemetry
from headrace.controlplane.store import Store
from headrace.controlplane.views import shown
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
from headrace.core.resources import (
    ROLES,
    ChangeRef,
    Deployment,
    DeploymentCreate,
    Engine,
    Outcome,
    Role,
    Traffic,
    TrafficUpdate,
    Version,
    VersionCreate,
)
from headrace.core.snapshot import SLOTS
from headrace.core.specs import Examination, ExaminationRequest
from headrace.deploy import store as deploy_store
from headrace.deploy.reconcile import Standing, Target
from headrace.registry import registration
from headrace.registry import store as registry
from headrace.registry.artifacts import Artifacts
from headrace.registry.examiner import Examiner
from headrace.registry.store import ModelRow, VersionRow
from headrace.traffic import store as traffic
from headrace.traffic.allocate import allocate, weights_of

REPLICAS_MAX = 256
VERSION_MAX = 1 << 31
SHARE_MIN = 100 / SLOTS
"""Percent: the smallest share of the traffic."""
log = logging.getLogger("headrace.controlplane.platform")
T = TypeVar("T")
encode = msgspec.json.Encoder().encode


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
    if_match: str | None = None

    def match(self, current: str) -> None:
        """Raises PreconditionFailed unless If-Match, where it was sent, names the tag `current`."""
        tags = [one.strip().removeprefix('"').removesuffix('"') for one in (self.if_match or "*").split(",")]
        if "*" not in tags and current not in tags:
            raise PreconditionFailed(
                f'If-Match: it is at "{current}" now, not at {self.if_match}',
                field="if-match",
                hint="read it again: somebody else has changed it meanwhile",
            )


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
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        """(actor, idempotency key) -> whoever is at work under it."""

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
            tenant = accounts.find_tenants(c, [key.tenant])[key.tenant]
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

    async def mutate(
        self,
        request: Request,
        work: Callable[[Connection], Record],
        show: Callable[[Connection, Record], T],
        kind: type[T],
        secret: bool = False,
    ) -> Outcome[T]:
        """Do `work`, and with it keep its record and what it is answered, in one transaction; then publish.

        Under an idempotency key it is done once, and answered as the first time: after kill -9 between the commit and
        the answer too. Who comes while the first is at work waits for it.

        Args:
            request: who asks, and under which idempotency key.
            work: changes the store.
            show: the result, read in the same transaction.
            kind: what `show` returns.
            secret: the result must not be stored; a second request under the key is refused.
        """
        actor, key = request.principal.key, request.idempotency_key

        def transaction(c: Connection) -> Outcome[T]:
            if key is not None and (before := changes.replayed(c, actor, key, request.digest)) is not None:
                return answer_again(c, before, kind)
            record = work(c)
            if record.changed:
                change = changes.append(c, actor, record, request.reason)
            else:
                change = changes.last(c, record.tenant, record.entity, record.action)
            # Not effective yet: so it stands until the routers have followed.
            made = Outcome(show(c, record), ChangeRef(change, record.undo if record.changed else None, False))
            if key is not None:
                changes.remember(c, actor, key, request.digest, change, None if secret else encode(made))
            return made

        async with self._turns.setdefault((actor, key), asyncio.Lock()) if key is not None else nullcontext():
            outcome = await self.store.run(transaction)
            if outcome.change.effective_ms is not None:
                return outcome  # as it was given before
            self.fleet.wake()
            try:
                effect = await self.routing.publish()
            except Exception:
                # The change is committed: to say that it failed would be a lie. It goes out with the next publication.
                log.exception("change %d is stored and could not be published", outcome.change.id)
                return outcome
            outcome.change.effective, outcome.change.effective_ms = effect.effective, round(effect.milliseconds, 3)
            if key is not None and not secret:
                await self.store.run(lambda c: changes.complete(c, actor, key, encode(outcome)))
            return outcome

    # ------------------------------------------------------------------------------------------------ registry
    async def register(self, request: Request, name: str, body: VersionCreate) -> Outcome[Version]:
        """Register a version. Raises InvalidInput, NotFound, Unprocessable."""
        request.principal.need("developer")
        check_name(name, "model")
        engine = registration.check(body)
        size = self.artifacts.size(body.digest)
        if size is None:
            raise NotFound(
                f"digest: no artifact {body.digest[:12]}...",
                field="digest",
                hint="PUT /api/v1/artifacts/{digest} first",
            )

        def look(c: Connection) -> tuple[bool, int | None]:
            actor, key = request.principal.key, request.idempotency_key
            again = key is not None and changes.replayed(c, actor, key, request.digest) is not None
            return again, self._same_as_latest(c, request, name, engine, body)

        again, known = await self.store.run(look)
        found = Examination()
        if not again and known is None:
            found = await self.examiner.examine(
                ExaminationRequest(engine, str(self.artifacts.path(body.digest)), body.options, body.signature)
            )
            if found.fault is not None:
                raise Unprocessable(found.fault.message, field=found.fault.field, hint=found.fault.hint)

        def work(c: Connection) -> Record:
            tenant = self.tenant(c, request)
            same = known or self._same_as_latest(c, request, name, engine, body)
            if same is not None:  # perhaps pushed by somebody else while it was examined
                return Record("version.register", tenant.name, f"{name}@{same}", changed=False)
            return self._add_version(c, request, name, engine, size, body, found)

        def show(c: Connection, record: Record) -> Version:
            tenant, model = self.model(c, request, name)
            return views.version(self.version(c, model, version_in(record)), name, tenant.name)

        return await self.mutate(request, work, show, Version)

    def _add_version(
        self,
        c: Connection,
        request: Request,
        name: str,
        engine: Engine,
        size: int,
        body: VersionCreate,
        found: Examination,
    ) -> Record:
        assert found.signature is not None and found.options is not None
        tenant = self.tenant(c, request)
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
                found.signature,
                found.options,
                body.metrics,
                body.tags,
                body.description,
                now(),
                request.principal.key,
            ),
        )
        return Record("version.register", tenant.name, f"{name}@{number}", None, {"digest": body.digest})

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
    async def deploy(self, request: Request, body: DeploymentCreate) -> Outcome[Deployment]:
        """Want a version to run. Raises Conflict where that takes away what serves."""
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
            if before is not None and body.replicas == 0:
                self.must_not_serve(c, model, version, f"headrace scale {entity} 0 --force")
            deploy_store.create(c, model.id, version, body.replicas, body.threads, share)
            undo = f"headrace scale {entity} {before.replicas}" if before else f"headrace undeploy {entity}"
            after = {"replicas": body.replicas, "threads": body.threads, "traffic_percent": share}
            shown = {"replicas": before.replicas, "threads": before.threads} if before else None
            return Record("deployment.create", tenant.name, entity, shown, after, undo)

        def show(c: Connection, record: Record) -> Deployment:
            return self.show_deployment(c, request, reference.model, version_in(record))

        return await self.mutate(request, work, show, Deployment)

    async def scale(
        self, request: Request, name: str, version: int, replicas: int, force: bool = False
    ) -> Outcome[Deployment]:
        """Want another number of replicas. Raises Conflict for none while the version has traffic, unless forced."""
        request.principal.need("operator")
        check_range("replicas", replicas, 0, REPLICAS_MAX)
        entity = f"{name}@{version}"

        def work(c: Connection) -> Record:
            tenant, model = self.model(c, request, name)
            before = self.deployment(c, model, version)
            request.match(views.tag(self.show_deployment(c, request, name, version)))
            if replicas == 0 and not force:
                self.must_not_serve(c, model, version, f"headrace scale {entity} 0 --force")
            deploy_store.scale(c, before, replicas)
            undo = f"headrace scale {entity} {before.replicas}"
            return Record(
                "deployment.scale", tenant.name, entity, {"replicas": before.replicas}, {"replicas": replicas}, undo
            )

        return await self.mutate(
            request, work, lambda c, _: self.show_deployment(c, request, name, version), Deployment
        )

    async def undeploy(self, request: Request, name: str, version: int, force: bool = False) -> Outcome[Deployment]:
        """Want a version to run no more; the result is what is left of it once it has drained. Raises Conflict while it
        has traffic, unless forced."""
        request.principal.need("operator")
        entity = f"{name}@{version}"

        def work(c: Connection) -> Record:
            tenant, model = self.model(c, request, name)
            before = self.deployment(c, model, version)
            if not force:
                self.must_not_serve(c, model, version, f"headrace undeploy {entity} --force")
            deploy_store.remove(c, model.id, version)
            undo = f"headrace deploy {entity} --replicas {before.replicas}"
            shown = {"replicas": before.replicas, "threads": before.threads, "created_at": before.created_at}
            return Record("deployment.remove", tenant.name, entity, shown, None, undo)

        def show(c: Connection, record: Record) -> Deployment:
            created_at = str((record.before or {})["created_at"])
            return Deployment(name, record.tenant, version, "stopped", 0, 0, 0, "undeployed", [], 0.0, created_at)

        return await self.mutate(request, work, show, Deployment)

    def must_not_serve(self, c: Connection, model: ModelRow, version: int, force: str) -> None:
        """Raises Conflict while a version has traffic or tenants pinned to it; `force` is how to do it even so."""
        entity = f"{model.name}@{version}"
        percent = weights_of(traffic.current(c, model.id).split).get(version, 0.0)
        pinned = [t for t, v in traffic.list_overrides(c, [model.id]).get(model.id, {}).items() if v == version]
        even_so = f"; or have its callers refused: {force}"
        if percent > 0:
            hint = f"give it to another version first: headrace traffic set {model.name} VERSION=100{even_so}"
            raise Conflict(f"{entity} has {percent:g} % of the traffic", field="version", hint=hint)
        if pinned:
            name = accounts.find_tenants(c, pinned[:1])[pinned[0]].name
            hint = f"headrace traffic unpin {model.name} {name}{even_so}"
            raise Conflict(f"{entity}: tenant {name!r} is pinned to it", field="version", hint=hint)

    def show_deployment(self, c: Connection, request: Request, name: str, version: int) -> Deployment:
        """A deployment as the API shows it. Raises NotFound."""
        tenant, model = self.model(c, request, name)
        desired = self.deployment(c, model, version)
        replicas, policy = views.replicas_of(self.fleet.statuses()), traffic.current(c, model.id)
        return views.deployment(desired, tenant.name, name, policy, replicas, self.standings())

    def show_traffic(self, c: Connection, request: Request, name: str) -> Traffic:
        """A model's traffic policy as the API shows it. Raises NotFound."""
        tenant, model = self.model(c, request, name)
        return views.policy(c, model, tenant.name)

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
    async def set_weights(self, request: Request, name: str, body: TrafficUpdate) -> Outcome[Traffic]:
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
            request.match(str(before.epoch))
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

        return await self.mutate(request, work, lambda c, _: self.show_traffic(c, request, name), Traffic)

    async def rollback(self, request: Request, name: str) -> Outcome[Traffic]:
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

        return await self.mutate(request, work, lambda c, _: self.show_traffic(c, request, name), Traffic)

    async def pin(self, request: Request, name: str, pinned: str, version: int | None) -> Outcome[Traffic]:
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

        return await self.mutate(request, work, lambda c, _: self.show_traffic(c, request, name), Traffic)

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


def version_in(record: Record) -> int:
    """Which version a record is about."""
    return int(record.entity.rpartition("@")[2])


def answer_again(c: Connection, before: changes.Answered, kind: type[T]) -> Outcome[T]:
    """What was answered before. Raises Conflict where that was a secret."""
    if before.answer is None:
        written = changes.find(c, before.change)
        made = written.entity if written is not None else ""
        raise Conflict(
            f"idempotency-key: it has made {made}, whose text is shown only once",
            field="idempotency-key",
            hint=f"headrace keys revoke {made}, and make another",
        )
    return msgspec.json.decode(before.answer, type=Outcome[kind])  # type: ignore[valid-type]
