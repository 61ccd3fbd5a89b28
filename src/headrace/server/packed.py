"""A version in a pack: a slot that has its engine only while it is in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import msgspec

from headrace.core.errors import HeadraceError
from headrace.core.report import SlotReport, StepReport
from headrace.core.specs import CatalogItem
from headrace.server.engines.port import Engine
from headrace.server.slot import Slot

FACTORS = {"onnx": 2.0}
"""Bytes in memory per byte of the artifact, until it is measured: on the safe side."""
FACTOR = 4.0
"""Of other engines, whose artifacts are terser."""
FIXED = 256 << 10
"""Bytes that the smallest model takes."""


class Warehouse(Protocol):
    """The pack, as its slots need it."""

    def want(self, slot: PackedSlot) -> None:
        """Requests wait for a version that is not in memory."""

    def served(self, slot: PackedSlot, requests: int) -> None:
        """Requests were taken by a version in memory."""

    def may_try(self, slot: PackedSlot) -> bool:
        """Whether a version may begin with a request that may end the process."""


class PackedSlot(Slot):
    """A version of the catalog.

    Args:
        item: of the catalog.
        limit_bytes: most memory that it may take.
        pack: loads it.
        wake, call_soon: see `Slot`.
    """

    def __init__(
        self,
        item: CatalogItem,
        limit_bytes: int,
        pack: Warehouse,
        wake: Callable[[], None],
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        super().__init__(item.served, None, math.inf, wake, call_soon)
        self.number = item.served.slot
        self.limit_bytes = limit_bytes
        self.bytes = item.measured_bytes
        """What it takes in memory; 0: not known yet."""
        self.run_s = math.inf
        """How long its quickest run took when it was warm; not known yet: for ever."""
        self.resident = False
        self.coming = False
        """It waits for its load, or that is under way, because somebody asked for it."""
        self.removed = False
        self.failures = 0
        """Loads in a row that failed."""
        self.failure: HeadraceError | None = None
        self.failed_until = 0.0
        self.evictions = 0
        self._loads = 0
        self._load_s = 0.0
        self._pack = pack

    @property
    def rests(self) -> bool:
        """See `Slot.rests`. One that is not in memory is woken by its load."""
        return self.idle or not self.resident

    def pump(self) -> None:
        """See `Slot.pump`."""
        if self.resident:
            if self.trials and self.free and not self._pack.may_try(self):
                return  # pumped again when what is at work is done
            before = len(self.waiting)
            super().pump()
            if taken := before - len(self.waiting):
                self._pack.served(self, taken)
        elif self.waiting or self.trials:
            self._pack.want(self)

    @property
    def free(self) -> bool:
        """Nothing of it runs, or is about to."""
        return not (self.busy or self._runs)

    def estimate(self) -> int:
        """Bytes that it may take, before that is known."""
        return FIXED + int(self.served.size_bytes * FACTORS.get(self.served.engine, FACTOR))

    def bring(self, engine: Engine, run_s: float) -> None:
        """It is loaded."""
        self.run_s = run_s
        self.equip(engine, run_s)
        self.resident, self.coming = True, False

    def take_engine(self) -> Engine:
        """It leaves the memory; the engine is the caller's to close."""
        engine = self.engine
        del self.engine, self.codec
        self.resident = False
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None
        return engine

    def purge(self, now: float, late: HeadraceError) -> bool:
        """Drop requests for which nobody waits any more, or no longer than until now; whether any are left."""
        for jobs in (self.waiting, self.trials):
            for job in [job for job in jobs if job[1] < now or job[0] in job[6].gone or job[6].lost]:
                jobs.remove(job)
                if job[0] in job[6].gone:
                    job[6].gone.discard(job[0])
                else:
                    self.fail(job, late)
        return bool(self.waiting or self.trials)

    def fail_all(self, error: HeadraceError) -> int:
        """Answer all that wait with an error; how many."""
        count = 0
        for jobs in (self.waiting, self.trials):
            while jobs:
                count += 1
                self.fail(jobs.popleft(), error)
        return count

    def counted(self, taken: float) -> None:
        """It was loaded because somebody asked for it."""
        self._loads += 1
        self._load_s += taken

    @property
    def stirred(self) -> bool:
        """Anything has happened since the last report."""
        now, then = self.totals, self._reported
        moved = (now.batches, now.failures) != (then.batches, then.failures)
        return moved or bool(self.waiting or self._loads or self.evictions or self._told_waiting)

    _told_waiting = False

    def report(self) -> SlotReport:
        """See `Slot.report`."""
        report = msgspec.structs.replace(
            super().report(), loads=self._loads, evictions=self.evictions, load_s=self._load_s
        )
        self._loads, self.evictions, self._load_s = 0, 0, 0.0
        self._told_waiting = report.queued > 0
        return report

    def _take_steps(self) -> tuple[StepReport, ...]:
        return ()
