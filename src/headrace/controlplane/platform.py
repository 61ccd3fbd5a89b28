"""What the use cases behind the API (`registering`, `deploying`, `routing`, and the smaller ones beside their routes)
share: who asks, which resources that reaches, and `mutate`, which changes the store in one transaction together with
the audit and the answer, has the routers follow, and says how far they have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec
from sqlalchemy import Connection

from headrace.controlplane import accounts, changes
from headrace.controlplane.accounts import TenantRow
from headrace.controlplane.artifacts import Artifacts
from headrace.controlplane.changes import Record
from headrace.controlplane.ports import Fleet, Routing, Telemetry
from headrace.controlplane.store import Store
from headrace.core.devices import TIERS, Tier
from headrace.core.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
)
from headrace.core.names import VersionName, did_you_mean
from headrace.core.resources import (
    ROLES,
    ChangeRef,
    Outcome,
    Role,
)
from headrace.core.snapshot import SLOTS
from headrace.core.specs import Packing
from headrace.deploy.reconcile import Standing, Target
from headrace.deploy.starts import StartTimes
from headrace.registry import lifecycle
from headrace.registry import store as registry
from headrace.registry.examiner import Examiner
from headrace.registry.store import ModelRow, VersionRow

REPLICAS_MAX = 256
PACKING = Packing()
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
    if_none_match: str | None = None

    def match(self, current: str) -> None:
        """Raises PreconditionFailed unless If-Match, where it was sent, names the tag `current`."""
        tags = [one.strip().strip('"') for one in ("*" if self.if_match is None else self.if_match).split(",")]
        if "*" not in tags and current not in tags:
            raise PreconditionFailed(
                f'If-Match: it is at "{current}" now, not at {self.if_match}',
                field="if-match",
                hint="read it again: somebody else has changed it meanwhile",
            )

    def match_none(self, entity: str) -> None:
        """Raises PreconditionFailed for what exists though the caller wants to make it (``If-None-Match: *``)."""
        if self.if_none_match is not None and self.if_none_match.strip() == "*":
            hint = "read it: somebody else has made it meanwhile"
            raise PreconditionFailed(f"If-None-Match: {entity} exists", field="if-none-match", hint=hint)


class Platform:
    """The use cases.

    Args:
        replicas_max: how many all deployments together may want.
        packing: how versions share processes.
        url: where inference is to be had over HTTP, and `grpc_url` over gRPC (empty: not at all).
        tiers: hardware that deployments may name, with its prices.
    """

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        examiner: Examiner,
        routing: Routing,
        fleet: Fleet,
        telemetry: Telemetry,
        standings: Callable[[], dict[Target, Standing]],
        replicas_max: int = 256,
        packing: Packing = PACKING,
        url: str = "",
        grpc_url: str = "",
        starts: StartTimes | None = None,
        tiers: Mapping[str, Tier] = TIERS,
    ) -> None:
        self.starts = starts or StartTimes()
        self.store = store
        self.artifacts = artifacts
        self.examiner = examiner
        self.routing = routing
        self.fleet = fleet
        self.telemetry = telemetry
        self.standings = standings
        self.replicas_max = replicas_max
        self.packing = packing
        self.url, self.grpc_url = url, grpc_url
        self.tiers = tiers
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

        return await self.store.read(find)

    @staticmethod
    def tenant(c: Connection, request: Request) -> TenantRow:
        """The tenant whose resources are meant. Raises Forbidden, NotFound."""
        name = request.tenant
        if name is None or name == request.principal.tenant.name:
            return request.principal.tenant
        if request.principal.role != "admin":
            raise Forbidden(f"tenant {name!r}: only an admin reaches other tenants' resources", field="tenant")
        return accounts.named_tenant(c, name)

    def model(self, c: Connection, request: Request, name: str) -> tuple[TenantRow, ModelRow]:
        """A model and its tenant. Raises NotFound."""
        tenant = self.tenant(c, request)
        found = registry.find_model(c, tenant.index, name)
        if found is None:
            raise NotFound(
                f"model {name!r} does not exist in tenant {tenant.name!r}",
                field="model",
                hint=did_you_mean(name, registry.model_names(c, tenant.index)) or f"headrace models push {name} FILE",
            )
        return tenant, found

    @staticmethod
    def number(c: Connection, model: ModelRow, wanted: VersionName) -> int:
        """The number of the version that is named, whether there is one of it or not. Raises NotFound for an alias
        that points at none."""
        if isinstance(wanted, int):
            return wanted
        if wanted.removeprefix("-").isdecimal():
            return int(wanted) if len(wanted) < 20 else VERSION_MAX
        aliases = lifecycle.list_aliases(c, [model.id]).get(model.id, {})
        if wanted not in aliases:
            near = did_you_mean(wanted, aliases) or f"headrace models alias {model.name} {wanted[:63]} VERSION"
            raise NotFound(f"model {model.name!r} has no alias {wanted[:63]!r}", field="version", hint=near)
        return aliases[wanted]

    @staticmethod
    def version(c: Connection, model: ModelRow, named: VersionName | None) -> VersionRow:
        """A version by number or alias, the latest for None. Raises NotFound."""
        number = None if named is None else Platform.number(c, model, named)
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
                with suppress(Unavailable):  # then it is given again as it stood at the commit
                    await self.store.run(lambda c: changes.complete(c, actor, key, encode(outcome)))
            return outcome


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
