"""A control plane's part in who leads: it waits for the lease, keeps it, and while another has it, hands the API's
requests on to that one.

Who finds that another leads ends its process: nothing of a leader's state is then left to be forgotten, and the node
starts it again, as one that waits. While the database is away nobody can lead anew, so the leader stays and waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send
from sqlalchemy import Connection

from headrace.controlplane import leases, problems
from headrace.controlplane.leases import Lease
from headrace.controlplane.store import Store
from headrace.core.errors import Unavailable

log = logging.getLogger("headrace.controlplane.leadership")
LOOK_S = 1.0
"""Pause between two looks at the lease, and two renewals of one's own."""
FORWARDED = b"x-headrace-forwarded"
"""Header of a request that a control plane has handed on: it is not handed on again."""
HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer", b"host", b"expect"}
"""Headers between two neighbours, which are not handed on."""


class Leadership:
    """Whether this control plane leads.

    Args:
        holder: its name, which no other process has while this one lives.
        url: of its API.
    """

    def __init__(self, store: Store, holder: str, url: str) -> None:
        self.token = 0
        """The fencing token; 0 before this one has led."""
        self.leading = False
        """Whether the loops run and the API answers here."""
        self.settled = asyncio.Event()
        """Set once this one leads, or another is seen to."""
        self.lease: Lease | None = None
        """As last seen."""
        self._store = store
        self._holder = holder
        self._url = url

    async def win(self) -> int:
        """Wait until this one leads; returns its token."""
        while True:
            with suppress(Unavailable):
                self.lease = await self._store.read(leases.current)
                if self.lease is None or self.lease.left_s <= 0 or self._mine(self.lease):
                    self.lease = await self._store.run(self._take)
                    if self._mine(self.lease):
                        self.token = self.lease.token
                        log.info("leading under token %d", self.token)
                        return self.token
                self.settled.set()
            await asyncio.sleep(LOOK_S)

    def begin(self) -> None:
        """Everything that a leader needs is there: answer."""
        self.leading = True
        self.settled.set()

    def check(self, connection: Connection) -> None:
        """Raises Deposed where another leads by now; in the transaction of a leader's work."""
        if not self._store.embedded:
            leases.check(connection, self.token)

    async def keep(self) -> None:
        """Renew the lease for as long as nobody else has it; raises Deposed then."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._store.embedded:
                continue  # nobody else could
            try:
                await self._store.run(lambda c: leases.renew(c, self.token))
            except leases.Deposed:
                raise
            except Unavailable:
                continue

    async def give_up(self) -> None:
        """End the lease at once, on the way out."""
        if self.token and not self._store.embedded:
            with suppress(Unavailable):
                await self._store.run(lambda c: leases.give_up(c, self.token))

    def _mine(self, lease: Lease) -> bool:
        return lease.holder == self._holder or self._store.embedded

    def _take(self, connection: Connection) -> Lease:
        return leases.take(connection, self._holder, self._url, alone=self._store.embedded)


class Forwarding:
    """The API of a control plane that may not be the leader: an ASGI application around the real one."""

    def __init__(self, app: ASGIApp, leadership: Leadership) -> None:
        self._app = app
        self._leadership = leadership
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=2.0), trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer here while leading, and what asks for this process' health; hand on all else."""
        if scope["type"] != ScopeType.HTTP or self._leadership.leading or scope["path"] == "/healthz":
            await self._app(scope, receive, send)
            return
        lease = self._leadership.lease
        handed_on = any(name == FORWARDED for name, _ in scope["headers"])
        if lease is None or lease.left_s <= 0 or handed_on:
            await _refuse(scope, receive, send, "no control plane leads at this moment")
            return
        try:
            await self._forward(lease, scope, receive, send)
        except httpx.ConnectError:
            await _refuse(scope, receive, send, "the control plane that leads does not answer; another will lead soon")

    async def _forward(self, lease: Lease, scope: HTTPScope, receive: Receive, send: Send) -> None:
        async def body() -> AsyncIterator[bytes]:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError("the client has gone")
                yield message.get("body", b"")  # type: ignore[misc]
                more = bool(message.get("more_body", False))

        headers = [(name, value) for name, value in scope["headers"] if name not in HOP]
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        path = scope.get("raw_path") or scope["path"].encode()
        query = scope.get("query_string", b"")
        url = httpx.URL(lease.url).copy_with(raw_path=path + (b"?" + query if query else b""))
        request = self._client.build_request(
            scope["method"], url, headers=[*headers, (FORWARDED, b"1")], content=body() if has_body else None
        )
        answer = await self._client.send(request, stream=True)
        try:
            kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await answer.aclose()


async def _refuse(scope: Scope, receive: Receive, send: Send, why: str) -> None:
    error = Unavailable(why, hint="send it again")
    problem = problems.make(error.status, error.code, error.message, None, error.hint)
    response = problems.response(problem, {"retry-after": "1"})
    await response.to_asgi_response(None, request=None)(scope, receive, send)  # type: ignore[arg-type]
