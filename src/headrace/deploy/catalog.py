"""What a pack serves, as its node's agent keeps it: brings artifacts here, numbers the slots, remembers what became of
each version. A control plane that comes back finds it here."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from headrace.core.errors import HeadraceError, RetryLater
from headrace.core.specs import (
    CatalogChange,
    CatalogEntry,
    CatalogItem,
    CatalogKey,
    CatalogOrder,
    EntryEvent,
    ServedVersion,
)

SLOTS = 1 << 16
"""Numbers that a slot may have: frames carry it in 16 bits."""
BRINGS_MAX = 8
"""Artifacts that are brought here at the same time for one pack."""
AGAIN_S = 2.0
"""Pause before an artifact that could not be had this time is tried for again."""

Near = Callable[[ServedVersion, list[int]], Awaitable[ServedVersion]]
"""A version with its artifact on this node; the list gets descriptors that keep it here. Raises HeadraceError."""


class Numbers:
    """Slot numbers. One that was given back is used again only when all others have been: by then no router sends by
    the snapshot in which it was another version's."""

    def __init__(self, most: int = SLOTS) -> None:
        self._most = most
        self._next = 0
        self._free: deque[int] = deque()

    def take(self) -> int | None:
        """A number; None where all are taken."""
        if self._next < self._most:
            self._next += 1
            return self._next - 1
        return self._free.popleft() if self._free else None

    def give_back(self, number: int) -> None:
        """A number that its version needs no more."""
        self._free.append(number)


@dataclass
class Held:
    """An entry, the item it came of, and what keeps its artifact here."""

    item: CatalogItem
    entry: CatalogEntry
    bringing: asyncio.Task[None] | None = None
    held: list[int] = field(default_factory=list)


class Catalog:
    """One pack's.

    Args:
        say: sends a change to the running pack.
        near: brings an artifact here.
        changed: called when an entry has.
    """

    def __init__(self, say: Callable[[CatalogChange], None], near: Near, changed: Callable[[], None]) -> None:
        self._say = say
        self._near = near
        self._changed = changed
        self._held: dict[CatalogKey, Held] = {}
        self._by_slot: dict[int, Held] = {}
        self._numbers = Numbers()
        self._bringing = asyncio.Semaphore(BRINGS_MAX)
        self._ready = asyncio.Event()

    def open(self) -> None:
        """The pack reads what it is sent."""
        self._ready.set()

    def order(self, order: CatalogOrder) -> None:
        """See `Fleet.catalog`."""
        come = []
        for item in order.add:
            served = item.served
            key = served.model, served.version, item.revision
            if key in self._held:
                continue
            entry = CatalogEntry(served.model, served.version, item.revision, -1, "pulling")
            held = self._held[key] = Held(item, entry)
            if served.artifact and self._ready.is_set():
                come.append(held)
            else:
                held.bringing = asyncio.get_running_loop().create_task(self._bring(held))
        numbered = [self._numbered(held, held.item.served) for held in come]
        added = tuple(item for item in numbered if item is not None)
        gone = [self._remove(key) for key in order.remove if key in self._held]
        removed = tuple(number for number in gone if number >= 0)
        if added or removed:
            self._say(CatalogChange(added, removed))

    def _numbered(self, held: Held, served: ServedVersion) -> CatalogItem | None:
        """The item as the pack gets it; None where no number is left."""
        number = self._numbers.take()
        if number is None:
            why = f"the pack has no slot left of {SLOTS}"
            held.entry = msgspec.structs.replace(held.entry, state="failed", detail=why)
            return None
        held.entry = msgspec.structs.replace(held.entry, slot=number, state="waiting")
        self._by_slot[number] = held
        return msgspec.structs.replace(held.item, served=msgspec.structs.replace(served, slot=number))

    async def _bring(self, held: Held) -> None:
        await self._ready.wait()
        while True:
            try:
                async with self._bringing:
                    served = await self._near(held.item.served, held.held)
                break
            except RetryLater as error:
                held.entry = msgspec.structs.replace(held.entry, detail=error.message)
                self._changed()
                await asyncio.sleep(AGAIN_S)
            except HeadraceError as error:
                held.entry = msgspec.structs.replace(held.entry, state="failed", detail=error.message)
                self._changed()
                return
        if (item := self._numbered(held, served)) is not None:
            self._say(CatalogChange((item,)))
        self._changed()

    def _remove(self, key: CatalogKey) -> int:
        """The slot that it had; -1 for none."""
        held = self._held.pop(key)
        self._release(held)
        number = held.entry.slot
        if number >= 0:
            del self._by_slot[number]
            self._numbers.give_back(number)
        return number

    @staticmethod
    def _release(held: Held) -> None:
        if held.bringing is not None:
            held.bringing.cancel()
        while held.held:
            os.close(held.held.pop())

    def said(self, event: EntryEvent) -> None:
        """What the pack says of a version."""
        held = self._by_slot.get(event.slot)
        if held is not None:  # else it has just been removed
            held.entry = msgspec.structs.replace(
                held.entry, state=event.state, detail=event.detail, bytes=event.bytes or held.entry.bytes
            )

    def on_trial(self) -> str:
        """The version that is being loaded for the first time, ``tenant/name@version``; there is at most one."""
        found = [held.entry for held in self._by_slot.values() if held.entry.state == "loading"]
        return f"{found[0].model}@{found[0].version}" if found else ""

    def entries(self) -> tuple[CatalogEntry, ...]:
        """All, in the order in which they came."""
        return tuple(held.entry for held in self._held.values())

    def close(self) -> None:
        """The pack is no more: it serves nothing."""
        for held in self._held.values():
            self._release(held)
        self._held.clear()
        self._by_slot.clear()
