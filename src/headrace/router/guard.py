"""Requests that may have killed a replica: held back, tried alone, and refused once they are known for it.

When a replica dies with requests on their way, any of them may be why. Each idempotent one becomes a *suspect* and is
sent again as a *trial*: one at a time, alone in its replica, which asks before it runs it (STANDBY, GO). One that is
answered is innocent. One whose replica dies between GO and its answer has now been in two deaths, the second time
alone: it is *condemned*, answered 422, and so is from then on every request with the same digest. The control plane
hears of it with the next report, writes it down, and tells all routers with the snapshot.

Rules:
- A digest is of the version and the inputs, not of the request's id, so that a client that counts its requests is
  known again. Bodies are only hashed for versions that have a guard: those with suspects or condemned digests.
- A trial may cost a replica, so it waits (`HOLD_S`, at most half of the time its request has left) until the version
  has another one, where it had one before.
- A suspect outlives its request for `SUSPECT_S`: where no answer was to be had in time, the next one like it is tried.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b

import msgspec

from headrace.core import frames, meta
from headrace.core.report import Condemned
from headrace.core.snapshot import Quarantined
from headrace.router.link import Arm, Client, Late, ReplicaLink, Waiting, choose_any

SUSPECT_S = 600.0
SUSPECTS_MAX = 1024
"""Of a version; the oldest are forgotten."""
HOLD_S = 3.0
TRIES = 5
"""How often a request is sent at most."""
QUARANTINE_S = 24 * 3600.0
monotonic = time.monotonic


class _Inputs(msgspec.Struct):
    inputs: msgspec.Raw


_inputs = msgspec.json.Decoder(_Inputs).decode


def digest_of(arm: Arm, context: bytes, body: Iterable[bytes], flags: int) -> bytes:
    """What a request is known by: its version and inputs; the whole body where that is not plain JSON."""
    whole = b"".join(body)
    found = blake2b(f"{arm.model}@{arm.version}\n".encode(), digest_size=16)
    length = meta.decode(context).json_length if flags & frames.BINARY else len(whole)
    try:
        if flags & (frames.GZIP | frames.DEFLATE):
            raise ValueError
        found.update(_inputs(whole[:length]).inputs)
        found.update(whole[length:])
    except (msgspec.MsgspecError, ValueError):
        found.update(whole)
    return found.digest()


class Held:
    """A suspect on its way to its trial, or in it. A `link.Client` in the place of the request's own."""

    __slots__ = ("client", "digest", "guard", "standing", "until", "waiting")

    def __init__(self, guard: Guard, waiting: Waiting, digest: bytes, now: float) -> None:
        self.guard = guard
        self.client = waiting[0]
        self.waiting = waiting
        self.digest = digest
        self.until = now + min(HOLD_S, (waiting[5] - now) / 2)
        self.standing = False
        """It was told to run, and nothing else runs in its replica."""

    @property
    def gone(self) -> bool:
        """Nobody waits for it any more."""
        return self.client.gone

    def answer(self, seq: int, kind: int, flags: int, status: int, meta: bytes, body: bytes) -> None:
        """It was answered, so it kills nothing."""
        self.guard.acquit(self)
        self.client.answer(seq, kind, flags, status, meta, body)

    def fail(self, seq: int, status: int, reason: str) -> None:
        """Its deadline has passed."""
        self.guard.conclude(self)
        self.client.fail(seq, status, reason)


class Guard:
    """The suspects and condemned digests of one version."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.suspects: dict[bytes, float] = {}
        """Digest -> until when it is remembered."""
        self.told: dict[bytes, float] = {}
        """Condemned, as the snapshot has them: digest -> until when, in Unix seconds."""
        self.own: dict[bytes, Condemned] = {}
        """Condemned here, and not yet in the snapshot."""
        self.held: deque[Held] = deque()
        self.trial: Held | None = None
        self.strength = 1
        """Replicas that the version had when the last one died."""

    @property
    def idle(self) -> bool:
        """There is nothing to remember."""
        return not (self.suspects or self.told or self.own or self.held or self.trial)

    def stops(self, waiting: Waiting) -> bool:
        """Look at a request before it is sent (it counts as in flight): refuse it, or hold it for a trial."""
        client, seq, _, tenant, now = waiting[:5]
        digest = digest_of(self.arm, waiting[7], waiting[8], waiting[9])
        until = self.until(digest)
        if until is not None:
            tenant.in_flight -= 1
            self.arm.error(tenant.index, 422)
            client.fail(seq, 422, self.why(digest, until))
        elif digest in self.suspects:
            self.held.append(Held(self, waiting, digest, now))
        else:
            return False
        return True

    def until(self, digest: bytes) -> float | None:
        """Until when a digest is condemned, in Unix seconds; None where it is not, or not any more."""
        own = self.own.get(digest)
        until = self.told.get(digest) if own is None else own.until
        return until if until is not None and until > time.time() else None

    def why(self, digest: bytes, until: float) -> str:
        """What its callers are told."""
        name = f"{self.arm.model.rpartition('/')[2]}@{self.arm.version}"
        end = datetime.fromtimestamp(until, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return (
            f"quarantined: this input has killed replicas of {name}, so it is refused until {end}; "
            f"to lift it: headrace quarantine lift {name} {digest.hex()}"
        )

    def suspect(self, digest: bytes, now: float) -> None:
        """Remember it."""
        self.suspects.pop(digest, None)
        self.suspects[digest] = now + SUSPECT_S
        if len(self.suspects) > SUSPECTS_MAX:
            del self.suspects[next(iter(self.suspects))]

    def condemn(self, digest: bytes) -> None:
        """Its replica died while it ran alone."""
        self.suspects.pop(digest, None)
        until = time.time() + QUARANTINE_S
        self.own[digest] = Condemned(self.arm.model, self.arm.version, digest, until)
        for held in [held for held in self.held if held.digest == digest]:
            self.held.remove(held)
            self.refuse(held.waiting, 422, self.why(digest, until))

    def acquit(self, held: Held) -> None:
        """It was answered."""
        self.suspects.pop(held.digest, None)
        self.conclude(held)

    def conclude(self, held: Held) -> None:
        """Its trial is over, whatever came of it; the next may begin."""
        if self.trial is held:
            self.trial = None
            self.release(monotonic())

    def refuse(self, waiting: Waiting, status: int, reason: str) -> None:
        """Answer a request that was not sent again."""
        tenant = waiting[3]
        tenant.in_flight -= 1
        if not waiting[0].gone:
            self.arm.error(tenant.index, status)
            waiting[0].fail(waiting[1], status, reason)

    def release(self, now: float) -> None:
        """Send the next suspect to its trial, if there is a replica to spare, or no time to wait for one."""
        while self.held and self.trial is None:
            held = self.held[0]
            late = held.waiting[5] < now
            if late or held.gone:
                self.held.popleft()
                self.refuse(held.waiting, 504, "the deadline passed before an answer was ready")
                continue
            up = sum(link.up for link, _ in (*self.arm.endpoints, *self.arm.spares))
            endpoint = choose_any(self.arm, now)
            if endpoint is None or (up < min(self.strength, 2) and now < held.until):
                return
            self.held.popleft()
            self.trial = held
            send(endpoint, held, held.waiting, frames.TRIAL)

    def sweep(self, now: float) -> None:
        """Forget what is over, and go on with what was held."""
        late = [held for held in self.held if held.waiting[5] < now or held.gone]
        for held in late:
            self.held.remove(held)
            self.refuse(held.waiting, 504, "the deadline passed before an answer was ready")
        for digest in [digest for digest, until in self.suspects.items() if until < now]:
            del self.suspects[digest]
        for digest in [digest for digest in self.own if self.until(digest) is None]:
            del self.own[digest]
        self.release(now)


class Guards:
    """The guards of a router: of each version that needs one."""

    def __init__(self) -> None:
        self._guards: dict[Arm, Guard] = {}

    def of(self, arm: Arm) -> Guard:
        """The guard of a version, from now on."""
        if arm.guard is None:
            arm.guard = self._guards[arm] = Guard(arm)
        return self._guards[arm]

    def told(self, arm: Arm, quarantined: tuple[Quarantined, ...]) -> None:
        """The snapshot's condemned digests of a version."""
        if quarantined or arm.guard is not None:
            guard = self.of(arm)
            guard.told = {one.digest: one.until for one in quarantined}
            guard.own = {digest: one for digest, one in guard.own.items() if digest not in guard.told}

    def condemned(self) -> tuple[Condemned, ...]:
        """What the control plane has to hear of; again and again, until the snapshot has it."""
        return tuple(one for guard in self._guards.values() for one in guard.own.values())

    def sweep(self, now: float) -> None:
        """The periodic work, every 20 ms."""
        for arm, guard in list(self._guards.items()):
            guard.sweep(now)
            if guard.idle:
                arm.guard = None
                del self._guards[arm]

    # ------------------------------------------------------------------------------------------------ link.Warden
    def late(self, waiting: Waiting, now: float) -> Late:
        """See `link.Warden.late`."""
        client, arm = waiting[0], waiting[6]
        if isinstance(client, Held):
            client.guard.conclude(client)
            return Late(arm, client.digest, now, client)
        return Late(arm, digest_of(arm, waiting[7], waiting[8], waiting[9]), now, client)

    def standby(self, waiting: Waiting) -> bool:
        """See `link.Warden.standby`."""
        held = waiting[0]
        if not isinstance(held, Held) or held.gone:
            return False
        held.standing = True
        return True

    def lost(self, link: ReplicaLink, died: bool, waiting: list[Waiting], late: list[Late], now: float) -> None:
        """See `link.Warden.lost`."""
        if not died:  # it had said that it would leave
            for one in waiting:
                again(one, link, now)
            return
        late = [one for one in late if now - one.at < SUSPECT_S]
        for arm in {*(one[6] for one in waiting), *(one.arm for one in late)}:
            others = [endpoint for endpoint, _ in (*arm.endpoints, *arm.spares) if endpoint is not link]
            self.of(arm).strength = len(others) + 1
        clients = [*(one[0] for one in waiting), *(one.client for one in late)]
        culprits = [client for client in clients if isinstance(client, Held) and client.standing]
        for held in culprits:
            self.of(held.guard.arm).condemn(held.digest)
        if not culprits:
            for given_up in late:
                self.of(given_up.arm).suspect(given_up.digest, now)
        for one in waiting:
            self._lost(one, link, bool(culprits), now)

    def _lost(self, waiting: Waiting, link: ReplicaLink, solved: bool, now: float) -> None:
        """A request whose replica died; `solved`: it was not its fault."""
        guard, held = self.of(waiting[6]), waiting[0]
        if isinstance(held, Held):
            waiting = (held.client, *waiting[1:])
            if guard.trial is held:
                guard.trial = None
            if held.standing:
                until = guard.until(held.digest)
                return guard.refuse(waiting, 422, guard.why(held.digest, until or 0.0))
        elif solved and choose_any(guard.arm, now, link) is not None:
            return again(waiting, link, now)
        digest = held.digest if isinstance(held, Held) else digest_of(guard.arm, *waiting[7:10])
        if not solved:
            guard.suspect(digest, now)
        if guard.arm.idempotent and waiting[10] < TRIES and waiting[5] > now and not waiting[0].gone:
            link.retries += 1
            guard.held.append(Held(guard, waiting, digest, now))
        else:
            guard.refuse(waiting, 503, LOST)


LOST = "the replica was lost and no other could take the request"


def send(endpoint: tuple[ReplicaLink, int], client: Client, waiting: Waiting, kind: int) -> None:
    """Send a request once more."""
    _, seq, cell, tenant, start, deadline, arm, context, body, flags, tries = waiting
    size = sum(map(len, body))
    link, slot = endpoint
    link.send(client, seq, cell, tenant, start, deadline, arm, slot, context, body, size, flags, tries + 1, kind)


def again(waiting: Waiting, link: ReplicaLink, now: float) -> None:
    """A request that was on its way goes to another replica, if its model is idempotent and there is time."""
    client, seq, _, tenant, _, deadline, arm, *_, tries = waiting
    other = None
    if arm.idempotent and tries < TRIES and deadline > now and not client.gone:
        other = choose_any(arm, now, link)
    if other is None:
        tenant.in_flight -= 1
        arm.error(tenant.index, 503)
        client.fail(seq, 503, LOST)
    else:
        link.retries += 1
        send(other, client, waiting, frames.REQUEST)
