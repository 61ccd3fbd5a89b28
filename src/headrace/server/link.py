"""A router's connection to this replica."""

from __future__ import annotations

import time
from typing import Protocol

from headrace.core import frames
from headrace.core.errors import HeadraceError, NotFound
from headrace.server.slot import Slot

monotonic = time.monotonic
GONE_MAX = 100_000


class Owner(Protocol):
    """What a link needs of its replica."""

    links: set[RouterLink]
    slots: list[Slot]
    active: set[Slot]
    """Those with something to do."""

    def schedule(self) -> None:
        """Pump the slots and flush the links at the end of this loop tick."""


class RouterLink(frames.FrameProtocol):
    """Requests in; answers collect in `out` and leave with the tick."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.owner = owner
        self.out: list[bytes] = []
        self.gone: set[int] = set()
        """Cancelled while they wait."""
        self.lost = False

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.owner.links.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.owner.links.discard(self)
        for slot in list(self.owner.active):
            slot.cancel(self)
        self.owner.schedule()

    def on_data(self, data: bytes) -> int:
        unpack, size, view, now = frames.HEADER.unpack_from, frames.SIZE, memoryview(data), monotonic()
        slots, active, i, n = self.owner.slots, self.owner.active, 0, len(data)
        while n - i >= size:
            length, rid, kind, flags, slot, timeout_ms, tenant, meta_length = unpack(data, i)
            start = i + size
            j = start + length
            if j > n:
                break
            if kind == frames.REQUEST:
                body = start + meta_length
                if slot < len(slots) and body <= j:
                    one = slots[slot]
                    one.waiting.append(
                        (rid, now + timeout_ms / 1000, tenant, data[start:body], view[body:j], now, self, flags)
                    )
                    active.add(one)
                else:
                    self.refuse(rid, NotFound("the replica does not hold this version"))
            elif kind == frames.CANCEL:
                if len(self.gone) < GONE_MAX:
                    self.gone.add(rid)
                for one in list(active):
                    one.cancel(self, rid)
            elif kind == frames.TRIAL and slot < len(slots):
                body = start + meta_length
                job = (rid, now + timeout_ms / 1000, tenant, data[start:body], view[body:j], now, self, flags)
                slots[slot].trials.append(job)
                active.add(slots[slot])
            elif kind == frames.GO:
                for one in list(active):
                    one.go(self, rid)
            elif kind == frames.STATISTICS and slot < len(slots):
                self.out.append(frames.frame(frames.REPLY, rid, slot=200, body=slots[slot].statistics()))
            elif kind == frames.PING:
                self.out.append(frames.frame(frames.PING, rid))
            i = j
        self.owner.schedule()
        return i

    def refuse(self, rid: int, error: HeadraceError) -> None:
        """Answer one request with an error."""
        self.out.append(frames.frame(frames.ERROR, rid, slot=error.status, body=error.message.encode()))

    def flush(self) -> None:
        """Send what has collected, in one write."""
        if self.out:
            out, self.out = self.out, []
            if not self.lost:
                self.transport.write(b"".join(out))
