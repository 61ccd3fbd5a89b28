"""A router's multiplexed connection to a replica, and what is counted per tenant and version.

Rules: a client that has gone is never written to; no exception leaves a callback of the shared link; what becomes of
requests that were on their way when the replica was lost is the warden's to say (`guard`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headrace.core import addresses, frames
from headrace.core.telemetry import Durations

if TYPE_CHECKING:
    from headrace.router.guard import Guard

monotonic = time.monotonic
RECONNECT_S = (0.02, 1.0)
"""First and longest pause between attempts to reach a replica."""
FAILURES = 5
"""Failures in a row that eject a replica."""
EJECT_S = (1.0, 30.0)
"""First and longest ejection."""


class Client(Protocol):
    """Whoever waits for a replica's answer."""

    @property
    def gone(self) -> bool:
        """Nobody waits any more."""

    def answer(self, seq: int, kind: int, flags: int, status: int, meta: bytes, body: bytes) -> None:
        """The replica's frame for the request that was sent with `seq`. Must not raise."""

    def fail(self, seq: int, status: int, reason: str) -> None:
        """No replica will answer. Must not raise."""


class Tenant:
    """Limits and live counts of one tenant."""

    __slots__ = ("burst_s", "in_flight", "index", "interval_s", "max_in_flight", "name")

    def __init__(self, index: int, name: str) -> None:
        self.index, self.name = index, name
        self.in_flight = 0
        self.limit(1.0, 1.0, 1)

    def limit(self, rate_per_s: float, burst: float, max_in_flight: int) -> None:
        """Set the limits; rate 0 refuses everything."""
        self.interval_s = 1 / rate_per_s if rate_per_s > 0 else float("inf")
        self.burst_s = max(burst - 1, 0.0) / rate_per_s if rate_per_s > 0 else -1.0
        self.max_in_flight = max_in_flight


class Arm:
    """One version of a model as the router sees it."""

    __slots__ = ("cells", "endpoints", "errors", "guard", "idempotent", "model", "spares", "version")

    def __init__(self, model: str, version: int) -> None:
        self.model, self.version = model, version
        self.endpoints: list[tuple[ReplicaLink, int]] = []
        self.spares: list[tuple[ReplicaLink, int]] = []
        """For when none of the endpoints is up."""
        self.idempotent = True
        self.guard: Guard | None = None
        """Whom its requests must pass, after one of its replicas has died."""
        self.cells: dict[int, Durations] = {}
        """Tenant -> latencies since the last report."""
        self.errors: dict[tuple[int, int], int] = {}
        """(tenant, HTTP status) -> count since the last report."""

    def cell(self, tenant: int) -> Durations:
        """Where a tenant's latencies go."""
        found = self.cells.get(tenant)
        if found is None:
            found = self.cells[tenant] = Durations()
        return found

    def error(self, tenant: int, status: int) -> None:
        """Count an error answer."""
        key = (tenant, status)
        self.errors[key] = self.errors.get(key, 0) + 1


# client, its sequence number, latencies, tenant, start, deadline, arm, meta, body in pieces, flags, tries before
Waiting = tuple[Client, int, Durations, Tenant, float, float, Arm, bytes, list[bytes], int, int]
LARGE = 64 << 10
"""Bytes. Bodies above this are not copied together with what else leaves in the same tick."""


LATE_MAX = 256
"""Requests of a replica that were given up and are remembered: one of them may be what it hangs on."""


class Late(NamedTuple):
    """A request that was given up before its replica answered."""

    arm: Arm
    digest: bytes
    at: float
    client: Client


class Warden(Protocol):
    """Says what becomes of requests whose replica was lost."""

    def late(self, waiting: Waiting, now: float) -> Late:
        """A request is given up: what to remember of it for as long as its replica says nothing."""

    def standby(self, waiting: Waiting) -> bool:
        """A TRIAL is next in its replica: whether it shall run."""

    def lost(self, link: ReplicaLink, died: bool, waiting: list[Waiting], late: list[Late], now: float) -> None:
        """A link has ended; `died`: without a word before. See to all who wait, and judge."""


def choose(
    endpoints: list[tuple[ReplicaLink, int]], now: float, avoid: ReplicaLink | None = None
) -> tuple[ReplicaLink, int] | None:
    """The endpoint with the least (in flight + 1) x smoothed service time among those that are up.

    Ejected replicas are passed over; when all are ejected the ejection means nothing and all count.
    """
    best, least = None, float("inf")
    for endpoint in endpoints:
        link = endpoint[0]
        if link.up and link is not avoid and link.ejected_until <= now:
            score = (len(link.waiting) + 1) * link.service_s
            if score < least:
                best, least = endpoint, score
    if best is None:
        for endpoint in endpoints:
            if endpoint[0].up and endpoint[0] is not avoid:
                return endpoint
    return best


def choose_any(arm: Arm, now: float, avoid: ReplicaLink | None = None) -> tuple[ReplicaLink, int] | None:
    """`choose` among an arm's endpoints, else among its spares."""
    return choose(arm.endpoints, now, avoid) or choose(arm.spares, now, avoid)


class ReplicaLink(frames.FrameProtocol):
    """One connection to one replica; writes are coalesced per loop tick."""

    def __init__(self, replica: str, address: str, warden: Warden, key: bytes = b"") -> None:
        super().__init__()
        self.replica = replica
        self.warden = warden
        self.up = False
        self.connected = asyncio.Event()
        self.waiting: dict[int, Waiting] = {}
        self.late: dict[int, Late] = {}
        self.service_s = 1e-3
        self.failures = 0
        self.ejected_until = 0.0
        self.ejections = 0
        self.retries = 0
        self._address = address
        self._key = key
        self._rid = 0
        self._out: list[bytes] = []
        self._out_large = False  # one of them is
        self._retired = False
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        pause = RECONNECT_S[0]
        while not self._retired:
            try:
                await addresses.connect(self._address, self, "requests", self._key, self.replica)
                return
            except OSError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, RECONNECT_S[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._out.clear()
        self.up = True
        self.failures = 0
        self.ejected_until = 0.0
        self.connected.set()

    def send(
        self,
        client: Client,
        seq: int,
        cell: Durations,
        tenant: Tenant,
        start: float,
        deadline: float,
        arm: Arm,
        slot: int,
        meta: bytes,
        body: list[bytes],
        size: int,
        flags: int,
        tries: int = 0,
        kind: int = frames.REQUEST,
    ) -> None:
        """Send a request; the answer goes to `client`. `body` comes in pieces, `size` bytes in all."""
        self._rid = rid = (self._rid + 1) & 0xFFFFFFFF
        self.waiting[rid] = (client, seq, cell, tenant, start, deadline, arm, meta, body, flags, tries)
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out += (
            frames.HEADER.pack(
                len(meta) + size,
                rid,
                kind,
                flags,
                slot,
                max(int((deadline - start) * 1000), 1),
                tenant.index,
                len(meta),
            ),
            meta,
            *body,
        )
        if size > LARGE:
            self._out_large = True

    def ask(self, client: Client, seq: int, arm: Arm, kind: int, slot: int) -> None:
        """Send a frame that is no inference request (statistics)."""
        now = monotonic()
        self._rid = rid = (self._rid + 1) & 0xFFFFFFFF
        self.waiting[rid] = (client, seq, Durations(), Tenant(-1, ""), now, now + 5.0, arm, b"", [], 0, 1)
        self._post(frames.frame(kind, rid, slot=slot))

    def _post(self, frame: bytes) -> None:
        if self.up:
            if not self._out:
                self._loop.call_soon(self._flush)
            self._out.append(frame)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not self.up or not out:
            return
        if self._out_large:
            self._out_large = False
            self.transport.writelines(out)
        else:
            self.transport.write(b"".join(out))

    def on_data(self, data: bytes) -> int:
        unpack, size, pop, now = frames.HEADER.unpack_from, frames.SIZE, self.waiting.pop, monotonic()
        i, n, start = 0, len(data), now
        while n - i >= size:
            length, rid, kind, flags, status, _, _, meta_length = unpack(data, i)
            j = i + size + length
            if j > n:
                break
            waiting = pop(rid, None)
            if waiting is not None:  # else it timed out meanwhile, and was answered
                client, seq, cell, tenant, start = waiting[:5]
                tenant.in_flight -= 1
                if kind == frames.REPLY:
                    cell.add(now - start)
                    if self.failures:
                        self.failures = 0
                else:
                    waiting[6].error(tenant.index, status)
                    if status >= 500:
                        self._failed(now)
                body = i + size + meta_length
                client.answer(seq, kind, flags, status, data[i + size : body] if meta_length else b"", data[body:j])
            elif kind == frames.GOAWAY:
                self._go()
            elif kind == frames.STANDBY:
                self._stand_by(int.from_bytes(data[i + size : j], "little"))
            else:
                self.late.pop(rid, None)
            i = j
        self.service_s += 0.1 * (now - start - self.service_s)
        if not self.up and not self.waiting:
            self.transport.close()
        return i

    def _stand_by(self, rid: int) -> None:
        """Its replica runs nothing and a trial is next: let it, unless it was given up."""
        waiting = self.waiting.get(rid)
        go = waiting is not None and self.warden.standby(waiting)
        # Also to one that is draining, where `up` is over: it runs nothing else until it hears.
        self.transport.write(frames.frame(frames.GO if go else frames.CANCEL, rid))

    def _failed(self, now: float) -> None:
        """Count a failure; the fifth in a row ejects, longer each time. When the time is over the next request is
        the probe: one more failure ejects again, one success forgives."""
        self.failures += 1
        if self.failures >= FAILURES and self.ejected_until <= now:
            times = self.failures - FAILURES
            self.ejected_until = now + min(EJECT_S[0] * 2 ** min(times, 10), EJECT_S[1])
            self.ejections += 1

    def sweep(self, now: float) -> None:
        """Expire what is late, cancel what nobody waits for."""
        late = [rid for rid, w in self.waiting.items() if w[5] < now or w[0].gone]
        for rid in late:
            waiting = self.waiting.pop(rid)
            waiting[3].in_flight -= 1
            self._post(frames.frame(frames.CANCEL, rid))
            if waiting[7]:
                self.late[rid] = self.warden.late(waiting, now)
                if len(self.late) > LATE_MAX:
                    del self.late[next(iter(self.late))]
            if not waiting[0].gone:
                waiting[6].error(waiting[3].index, 504)
                self._failed(now)
                waiting[0].fail(waiting[1], 504, "the deadline passed before an answer was ready")
        if late and not self.up and not self.waiting:
            self.transport.close()

    def retire(self) -> None:
        """The replica has left the snapshot: send nothing new, close when the last answer has come."""
        self._retired = True
        self._go()
        if not self.connected.is_set():
            self._task.cancel()

    def _go(self) -> None:
        if self.up:
            self._flush()
            self.up = False
            if not self.waiting:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The warden sees to the requests that were on their way."""
        died, self.up = self.up, False
        self.connected.clear()
        lost, self.waiting = self.waiting, {}
        late, self.late = self.late, {}
        self._out.clear()
        self.reset()
        now = monotonic()
        for client, seq, *_, context, _, _, _ in lost.values():
            if not context:  # a question of our own
                client.fail(seq, 503, "the replica was lost")
        self.warden.lost(self, died, [one for one in lost.values() if one[7]], list(late.values()), now)
        if not self._retired:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._task = self._loop.create_task(self._connect())
