"""The request path of the gRPC front: the HTTP front's steps over the same table, links and quotas.

Key -> tenant -> model -> admission -> body -> deadline -> decision -> replica -> frame.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from headrace.core import frames, meta
from headrace.core.errors import (
    BY_CODE,
    HeadraceError,
    InvalidInput,
    PlatformFault,
    QuotaExceeded,
    RetryLater,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from headrace.router import oip
from headrace.router.core import SWEEP_S, Router
from headrace.router.grpc_api import inference_pb2 as pb
from headrace.router.grpc_tensors import request_body, response
from headrace.router.http import TIMEOUT_MAX_S
from headrace.router.link import Tenant, choose_any
from headrace.router.table import Target

if TYPE_CHECKING:
    from headrace.router.table import Table

monotonic = time.monotonic
URLS_MAX = 10_000
_BY_STATUS: Final = {kind.status: kind for kind in reversed(BY_CODE.values())}


def failure(status: int, message: str, retry_after_s: float | None = None) -> HeadraceError:
    """The error of an HTTP status."""
    kind = _BY_STATUS.get(status, PlatformFault)
    if retry_after_s is not None and issubclass(kind, RetryLater):
        return kind(message, retry_after_s=retry_after_s)
    return kind(message)


class Call:
    """Waits for a replica's answer: (HTTP status, meta, body)."""

    __slots__ = ("gone", "reply")

    def __init__(self) -> None:
        self.gone = False
        self.reply: asyncio.Future[tuple[int, bytes, bytes]] = asyncio.get_running_loop().create_future()

    def answer(self, seq: int, kind: int, flags: int, status: int, meta: bytes, body: bytes) -> None:
        """The replica's frame."""
        if not self.reply.done():
            # Large frames come as bytearrays, which messages do not take.
            self.reply.set_result((200 if kind == frames.REPLY else status, meta, bytes(body)))

    def fail(self, seq: int, status: int, reason: str) -> None:
        """No replica will answer."""
        if not self.reply.done():
            self.reply.set_result((status, b"", reason.encode()))


class Caller:
    """Who calls, and what the call's metadata says."""

    __slots__ = ("authorization", "headers", "tenant")

    def __init__(self, table: Table, headers: Mapping[str, Any]) -> None:
        self.headers = headers
        self.authorization = self.text("authorization")
        self.tenant = table.seen.get(self.authorization) or table.tenant_of(self.authorization)

    def text(self, name: str) -> bytes | None:
        """A metadata value; None where there is none."""
        value = self.headers.get(name)
        return value.encode() if isinstance(value, str) else value

    def known(self) -> Tenant:
        """The tenant. Raises Unauthenticated."""
        if self.tenant is None:
            raise Unauthenticated("no API key, or one that nobody holds: send metadata authorization: Bearer hr_...")
        return self.tenant


class Inference:
    """Answers inference requests for one router process."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self._urls: dict[tuple[str, str], bytes] = {}
        self._numbers = itertools.count()

    async def infer(self, request: pb.ModelInferRequest, caller: Caller, left_s: float | None) -> pb.ModelInferResponse:
        """Answer one request.

        Args:
            request: the message.
            caller: who sent it; for a stream the same for all of its requests.
            left_s: seconds that the call's deadline leaves; None without.

        Raises:
            HeadraceError: why there is no prediction.
        """
        now = monotonic()
        try:
            target, body, json_length, timeout_s = self._admitted(request, caller.known(), left_s, now)
            tenant, router = caller.known(), self.router
            traceparent = caller.text("traceparent")
            unit = caller.text("x-unit") or traceparent or b"%d.%d" % (id(self), next(self._numbers))
            arm = target.decide(tenant.index, unit)
            endpoint = choose_any(arm, now) if arm is not None else None
            if arm is None or endpoint is None:
                raise Unavailable(oip.why_not_ready(target))
        except HeadraceError as error:
            self.router.count(caller.tenant.index if caller.tenant is not None else -1, error.status)
            raise
        tenant.in_flight += 1
        call, cell, deadline = Call(), arm.cell(tenant.index), now + timeout_s
        context = meta.encode((router.table.snapshot.epoch, json_length, traceparent or b""))
        if arm.guard is None or not arm.guard.stops(
            (call, 0, cell, tenant, now, deadline, arm, context, [body], frames.BINARY, 0)
        ):
            endpoint[0].send(
                call,
                0,
                cell,
                tenant,
                now,
                deadline,
                arm,
                endpoint[1],
                context,
                [body],
                len(body),
                frames.BINARY,
            )
        try:
            status, head, reply = await call.reply
        except asyncio.CancelledError:
            # Where it is the deadline that ended the call, the sweep counts it as such.
            call.gone = monotonic() < now + timeout_s - SWEEP_S
            raise
        if status != 200:
            raise failure(status, reply.decode("utf-8", "replace"))
        return response(reply, int.from_bytes(head, "little"))

    def _admitted(
        self, request: pb.ModelInferRequest, tenant: Tenant, left_s: float | None, now: float
    ) -> tuple[Target, bytes, int, float]:
        """The model, the body and its JSON part's length, and the time-out. Raises HeadraceError."""
        target = self._target(request, tenant)
        if tenant.in_flight >= tenant.max_in_flight:
            raise QuotaExceeded("the tenant has too many requests in flight")
        if not self.router.admit(tenant, now):
            status, message, wait_s = self.router.refusal(tenant, now)
            raise failure(status, message, wait_s)
        body, json_length = request_body(request)
        model = target.model
        if len(body) > model.body_max_bytes:
            raise TooLarge(f"the request has {len(body)} bytes, the model takes at most {model.body_max_bytes}")
        timeout_s = model.timeout_s if left_s is None else min(left_s, TIMEOUT_MAX_S)
        if "timeout" in request.parameters:
            microseconds = request.parameters["timeout"].int64_param
            if microseconds < 0:
                raise InvalidInput(f"parameters.timeout: {microseconds}, expected microseconds", field="timeout")
            if microseconds:
                timeout_s = min(timeout_s, microseconds / 1e6)
        return target, body, json_length, timeout_s

    def _target(self, request: pb.ModelInferRequest, tenant: Tenant) -> Target:
        """What the request means for the tenant. Raises NotFound, Forbidden, Unavailable."""
        key = (request.model_name, request.model_version)
        url = self._urls.get(key)
        if url is None:
            version = f"/versions/{quote(key[1], safe='')}" if key[1] else ""
            url = f"/v2/models/{quote(key[0], safe='')}{version}/infer".encode()
            if len(self._urls) < URLS_MAX:
                self._urls[key] = url
        target = self.router.table.routes.get(url, {}).get(tenant.index)
        if target is None:
            oip.resolve(self.router.table, key[0], key[1] or None, tenant.index)
            raise Unavailable(f"model {key[0]!r} has no version ready")
        return target
