"""A pack: many versions in one process, each loaded when it is asked for, the least worth keeping evicted for it.

The catalog comes over standard input while the process runs. A version that is new in it is loaded once (its *trial
load*), which shows that it can be served and what it takes; one that another process has shown that of already is
taken at its word. From then on a request for a version that is not in memory waits for its load: loads run in threads
of their own, few at a time, the most wanted first come, first served; all requests for a version wait for the same one.

Memory: models are counted by what their trial load took, the rest of the process by what is resident when the C
library has given back what is free. Room is made before a load begins, never after. Behind that stands the watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import msgspec

from headrace.core.errors import DeadlineExceeded, HeadraceError, Unavailable
from headrace.core.report import PackReport
from headrace.core.specs import (
    CatalogChange,
    CatalogItem,
    EntryEvent,
    EntryState,
    PackSpec,
    ReplicaEvent,
    ServedVersion,
)
from headrace.core.telemetry import Durations, rss_bytes
from headrace.server.engines.port import Engine
from headrace.server.memory import Memory
from headrace.server.packed import PackedSlot
from headrace.server.residency import Residency
from headrace.server.slot import Slot

HEADROOM = 0.08
"""Of the limit, and at least `HEADROOM_MIN`, is left for what runs take beside the models."""
HEADROOM_MIN = 16 << 20
LOOK_S = 1.0
TRIM_S = 0.5
"""Whoever allocates waits while the C library gives back what is free: where there is still room, not more often."""
NICE = 5
"""Loads give way to what is served, where the machine has too few cores for both."""
PAUSE_S = (1.0, 60.0)
"""First and longest time for which a version that did not load is not tried again."""
Load = Callable[[ServedVersion, int], tuple[Engine, float]]
"""Loads a version and runs it so often to warm it; how long its quickest run took."""
log = logging.getLogger("headrace.server.pack")


class Owner(Protocol):
    """What a pack needs of its replica."""

    slots: list[Slot]
    active: set[Slot]

    def schedule(self) -> None:
        """Pump the slots and flush the links at the end of this loop tick."""


@dataclass(frozen=True, slots=True)
class Job:
    """A load to be done in a thread."""

    slot: PackedSlot
    bytes: int
    trial: bool
    runs: int
    leaving: list[Engine]
    """Evicted for it: closed first."""


class Pack:
    """The catalog, and what of it is in memory.

    Args:
        spec: its limits.
        owner: the replica: its slots are the catalog.
        load: loads a version.
        tell: writes an event to the node.
        loop: the event loop, whose thread calls everything here.
    """

    def __init__(
        self,
        spec: PackSpec,
        owner: Owner,
        load: Load,
        tell: Callable[[ReplicaEvent], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._spec = spec
        self._owner = owner
        self._load = load
        self._tell = tell
        self._loop = loop
        self._memory = Memory()
        self._memory.tune()
        self._limit = spec.memory_mb << 20
        headroom = max(int(HEADROOM * self._limit), HEADROOM_MIN)
        self._target = self._limit - headroom
        self._trim_at, self._trim_now_at = self._limit - headroom // 2, self._limit - headroom // 4
        self._trimmed_at = 0.0
        self._overhead = self._base = rss_bytes()
        """Resident bytes that are no model's."""
        self.residency = Residency[int]()
        self._trials: deque[PackedSlot] = deque()
        self._queue: deque[PackedSlot] = deque()
        self._loading: dict[PackedSlot, Job] = {}
        self._alone = True
        """No other load has begun since the trial load under way did: what was allocated is its own."""
        self._engines: set[str] = set()
        """Those whose libraries have been loaded: what a first model takes includes its library."""
        self._trying: PackedSlot | None = None
        """Whose request is, or was last, on trial."""
        self._leaving: set[PackedSlot] = set()
        self._loads = Durations()
        self._hits = self._misses = self._refused = 0
        self._threads = ThreadPoolExecutor(spec.loads_max, "load", initializer=_give_way)
        self._timer = loop.call_later(LOOK_S, self._look)

    # ------------------------------------------------------------------------------------------------ catalog
    def change(self, line: bytes) -> None:
        """Take a line of the node."""
        change = msgspec.json.decode(line, type=CatalogChange)
        for item in change.add:
            self._add(item)
        for number in change.remove:
            slot = self._owner.slots[number]
            assert isinstance(slot, PackedSlot)
            slot.removed = True
            self._leaving.add(slot)
        self._owner.schedule()

    def _add(self, item: CatalogItem) -> None:
        limit_mb = min(item.memory_mb or self._spec.model_memory_mb, self._spec.memory_mb)
        slot = PackedSlot(item, limit_mb << 20, self, self._owner.schedule, self._loop.call_soon_threadsafe)
        slots = self._owner.slots
        if slot.number == len(slots):
            slots.append(slot)
        else:
            slots[slot.number] = slot  # used before, by a version that has left long ago
        if item.measured_bytes:
            self._say(slot, "ready")
        else:
            self._trials.append(slot)

    def _say(self, slot: PackedSlot, state: EntryState, detail: str = "") -> None:
        self._tell(ReplicaEvent("ready", entry=EntryEvent(slot.number, state, detail, slot.bytes)))

    # ------------------------------------------------------------------------------------------------ requests
    def want(self, slot: PackedSlot) -> None:
        """Requests wait for a version that is not in memory."""
        now = time.monotonic()
        if slot.coming:
            return
        if slot.removed:
            slot.fail_all(Unavailable("the version has left this process"))
        elif now < slot.failed_until and slot.failure is not None:
            slot.fail_all(slot.failure)
        elif len(self._queue) >= self._spec.waiting_max:
            self._refused += slot.fail_all(
                Unavailable(f"{len(self._queue)} models wait to be loaded already, which is as many as may")
            )
        else:
            slot.coming = True
            self._queue.append(slot)

    def served(self, slot: PackedSlot, requests: int) -> None:
        """Requests were taken by a version in memory."""
        self.residency.touch(slot.number, requests)
        self._hits += requests

    def may_try(self, slot: PackedSlot) -> bool:
        """Whether a version may begin with a request that may end the process: only one does at a time, and not while
        anything runs, or another's would be blamed. What comes later runs beside it: to have all others wait for one
        that hangs would cost more than the rare wrong verdict."""
        trying = self._trying
        others = any(one.busy for one in self._owner.active if one is not slot)
        if others or (trying is not None and trying is not slot and not trying.free):
            return False
        self._trying = slot
        return True

    def turn(self) -> None:
        """Go on with loads; called after each tick's pumping."""
        for slot in [slot for slot in self._leaving if slot.idle and slot not in self._loading]:
            self._leaving.discard(slot)
            if slot.resident:
                self._close([self._unload(slot)])
        now = time.monotonic()
        while self._queue and len(self._loading) < self._spec.loads_max:
            slot = self._queue[0]
            wanted = slot.purge(now, DeadlineExceeded("the deadline passed before the model was loaded"))
            here = slot.resident or slot in self._loading  # by its trial load
            if wanted and not here and not self._begin(slot, trial=False):
                break  # too much of what is in memory is at work: when some of it is done there is another turn
            self._queue.popleft()
            slot.coming = slot.coming and wanted
        proving = any(job.trial for job in self._loading.values())
        while self._trials and not proving and len(self._loading) < self._spec.loads_max:
            slot = self._trials[0]
            if not slot.removed and not slot.resident and slot not in self._loading:
                if not self._begin(slot, trial=True):
                    break
                proving = slot in self._loading
            self._trials.popleft()

    # ------------------------------------------------------------------------------------------------ loads
    def _begin(self, slot: PackedSlot, trial: bool) -> bool:
        """Make room for a version and have it loaded; False where there is no room to be made at the moment."""
        size = slot.bytes or slot.estimate()
        most = min(slot.limit_bytes, self._target - self._base)
        if size > most:
            self._failed(slot, too_large(size, most), trial)
            return True
        room = self._target - self._overhead - sum(job.bytes for job in self._loading.values())
        victims = self.residency.victims(size, room, self._at_work)
        if victims is None:
            if self.residency.residents or self._loading:
                return False
            self._threads.submit(self._shrink)  # which measures anew
            self._failed(slot, f"no room for {megabytes(size)} beside what runs take", trial)
            return True
        leaving = [self._unload(self._slot(number), evicted=True) for number in victims]
        self._alone = not self._loading
        # The first request is its warm-up, unless nobody knows yet how long a run takes.
        job = Job(slot, size, trial, 3 if trial else int(math.isinf(slot.run_s)), leaving)
        self._loading[slot] = job
        if trial:
            self._say(slot, "loading")
        self._threads.submit(self._work, job)
        return True

    def _at_work(self, number: int) -> bool:
        return not self._slot(number).idle

    def _slot(self, number: int) -> PackedSlot:
        slot = self._owner.slots[number]
        assert isinstance(slot, PackedSlot)
        return slot

    def _work(self, job: Job) -> None:
        """In a thread: close what leaves, then load."""
        for engine in job.leaving:
            engine.close()
        job.leaving.clear()
        needed, lately = rss_bytes() + job.bytes, time.monotonic() - self._trimmed_at < TRIM_S
        if needed > self._trim_now_at or (needed > self._trim_at and not lately):
            self._memory.trim()
            self._trimmed_at = time.monotonic()
            resident = rss_bytes()
            self._post(lambda: self._measured(resident))
            if resident + job.bytes > self._trim_at:
                return self._post(lambda: self._again(job))
        before = self._memory.allocated_bytes() if job.trial else 0
        start = time.monotonic()
        try:
            engine, run_s = self._load(job.slot.served, job.runs)
        except HeadraceError as error:
            message = error.message
            return self._post(lambda: self._broken(job, message))
        except Exception as error:  # whatever a model raises
            log.exception("%s@%d does not load", job.slot.served.model, job.slot.served.version)
            text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:500]}"
            return self._post(lambda: self._broken(job, text))
        taken = time.monotonic() - start
        size = self._memory.allocated_bytes() - before if job.trial else 0
        self._post(lambda: self._loaded(job, engine, run_s, taken, size))

    def _post(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call)

    def _measured(self, resident: int) -> None:
        """What the process takes beside its models, just after all that is free was given back."""
        self._overhead = max(resident - self.residency.used_bytes, self._base)

    def _again(self, job: Job) -> None:
        """There was less room than was thought."""
        del self._loading[job.slot]
        if not self.residency.residents and not self._loading:
            self._failed(job.slot, f"no room for {megabytes(job.bytes)} beside what runs take", job.trial)
        elif job.trial:
            self._trials.appendleft(job.slot)
        else:
            self._queue.appendleft(job.slot)
        self._owner.schedule()

    def _broken(self, job: Job, why: str) -> None:
        del self._loading[job.slot]
        self._failed(job.slot, why, job.trial)

    def _failed(self, slot: PackedSlot, why: str, trial: bool) -> None:
        """A version cannot be served: for good where it never could, else for a while."""
        slot.coming = False
        slot.failures += 1
        name = f"{slot.served.model.rpartition('/')[2]}@{slot.served.version}"
        first, longest = PAUSE_S
        slot.failure = Unavailable(f"{name} cannot be loaded: {why}")
        slot.failed_until = time.monotonic() + min(first * 2.0 ** (slot.failures - 1), longest)
        slot.fail_all(slot.failure)
        self._say(slot, "failed" if trial else "ready", why if trial else f"its last load failed: {why}")
        self._owner.schedule()

    def _loaded(self, job: Job, engine: Engine, run_s: float, taken: float, size: int) -> None:
        slot = job.slot
        del self._loading[slot]
        if job.trial:
            # What others allocated meanwhile cannot be told apart; the estimate is on the safe side.
            known = self._alone and slot.served.engine in self._engines
            slot.bytes = max(size, slot.served.size_bytes) if known else job.bytes
            self._engines.add(slot.served.engine)
            if slot.bytes > slot.limit_bytes:
                self._close([engine])
                return self._failed(slot, too_large(slot.bytes, slot.limit_bytes), trial=True)
        else:
            slot.counted(taken)
            self._misses += len(slot.waiting) + len(slot.trials)
            self._hits -= len(slot.waiting) + len(slot.trials)
        slot.bytes = slot.bytes or job.bytes
        slot.bring(engine, run_s if job.runs else slot.run_s)
        self._loads.add(taken)
        self.residency.admit(slot.number, slot.bytes, taken)
        if job.trial or slot.failures:
            slot.failures = 0
            self._say(slot, "ready")
        self._owner.active.add(slot)
        self._owner.schedule()

    # ------------------------------------------------------------------------------------------------ memory
    def _unload(self, slot: PackedSlot, evicted: bool = False) -> Engine:
        self.residency.remove(slot.number, evicted)
        slot.evictions += evicted
        return slot.take_engine()

    def _close(self, engines: list[Engine]) -> None:
        def close() -> None:
            for engine in engines:
                engine.close()

        self._threads.submit(close)

    def _look(self) -> None:
        """Once a second: is there more resident than there should be?"""
        self._timer = self._loop.call_later(LOOK_S, self._look)
        if rss_bytes() > self._trim_at:
            self._threads.submit(self._shrink)

    def _shrink(self) -> None:
        """In a thread."""
        self._memory.trim()
        resident = rss_bytes()
        self._post(lambda: self._shrunk(resident))

    def _shrunk(self, resident: int) -> None:
        self._measured(resident)
        room = self._target - self._overhead - sum(job.bytes for job in self._loading.values())
        victims = self.residency.victims(0, max(room, 0), self._at_work) or []
        self._close([self._unload(self._slot(number), evicted=True) for number in victims])

    # ------------------------------------------------------------------------------------------------ reports
    def stirred(self) -> Iterator[PackedSlot]:
        """The versions with which anything has happened since the last report: of a thousand most rest."""
        return (slot for slot in self._owner.slots if isinstance(slot, PackedSlot) and slot.stirred)

    def report(self) -> PackReport:
        """What happened since the last report."""
        hits, misses, refused = self._hits, self._misses, self._refused
        self._hits = self._misses = self._refused = 0
        return PackReport(
            self._spec.number,
            tuple(self.residency.residents),
            self.residency.used_bytes,
            self._limit,
            hits,
            misses,
            refused,
            len(self._queue),
            self._loads.take(),
        )

    def close(self) -> None:
        """Load nothing more, and close what is in memory."""
        self._timer.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for number in list(self.residency.residents):
            self._unload(self._slot(number)).close()


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / (1 << 20):.1f} MiB"


def too_large(size: int, most: int) -> str:
    """Why a model may not be loaded."""
    return f"it takes {megabytes(size)} of memory, and may take {megabytes(most)}"


def _give_way() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
