"""Ends this process when a run of an engine hangs, or when it has taken more memory than it may.

Runs of quick engines are in the event loop's thread, so nothing there could notice that one does not return. Two look:

1. A thread of ours, every `TICK_S`: is the run under way past its limit, is the memory? If so it says why (an event
   line to the node), writes every thread's stack to the log and kills the process.
2. The kernel, for C code that never gives the GIL back and so stops that thread too: each tick sets the process's
   alarm anew. It rings only where no tick came for longer than any run may take, and SIGALRM's own action is the end.

Memory that is taken faster than a tick sees is bounded by RLIMIT_DATA, `HEADROOM_MB` above the limit: an allocation
beyond it fails inside the model.

So the node needs no heartbeats, and a process that is stopped or starved of its CPU for less than the limit lives on.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from headrace.core.specs import ReplicaEvent, ReplicaState
from headrace.core.telemetry import rss_bytes
from headrace.server.slot import Slot

TICK_S = 0.1
RUN_LIMIT_S = 60.0
"""Of a run whose version sets no limit, unless somebody waits for it longer."""
STUCK = 0.75
"""Of its limit: from then on a run is stuck, and a spare for its replica is started."""
HEADROOM_MB = 1024
log = logging.getLogger("headrace.server.watchdog")


class Watchdog:
    """Looks after this process, from `start` to `stop`.

    Args:
        tell: writes an event to the node: what the replica ends in, and why; before that, that a run is stuck.
        memory_mb: most memory of the process, in MiB; None: no limit.
    """

    def __init__(self, tell: Callable[[ReplicaEvent], None], memory_mb: int | None = None) -> None:
        self._tell = tell
        self._memory_mb = memory_mb
        self._slots: Sequence[Slot] = ()
        self._stuck = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch the memory, from before anything is loaded."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if self._memory_mb is not None:
            most = (self._memory_mb + HEADROOM_MB) << 20
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        self._thread.start()

    def watch(self, slots: Sequence[Slot]) -> None:
        """Watch these slots' runs too."""
        self._slots = slots

    def stop(self) -> None:
        """Watch no more: the process is on its way out."""
        self._stopped.set()
        self._thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _look(self) -> None:
        while not self._stopped.wait(TICK_S):
            slots, now = self._slots, time.monotonic()
            if slots:
                alarm_s = max(slot.served.options.run_limit_s or RUN_LIMIT_S for slot in slots)
                signal.setitimer(signal.ITIMER_REAL, alarm_s + 1.0)
            runs = [(began, limit_s(slot, began), slot) for slot in slots if (began := slot.began)]
            stuck = any(now - began > STUCK * limit for began, limit, _ in runs)
            if stuck != self._stuck:
                self._stuck = stuck
                self._tell(ReplicaEvent("ready", stuck=stuck))
            for began, limit, slot in runs:
                if now - began > limit:
                    self._end("crashed", f"watchdog: a run had not ended after {now - began:.1f} s", [slot])
            if self._memory_mb is not None and rss_bytes() > self._memory_mb << 20:
                # Before it serves it is the version that does not fit, and to start it again would not help.
                running = [slot for _, _, slot in runs]
                self._end("crashed" if slots else "failed", f"memory limit of {self._memory_mb} MB exceeded", running)

    def _end(self, state: ReplicaState, why: str, running: Sequence[Slot]) -> None:
        log.error(why)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        (culprit,) = [f"{one.served.model}@{one.served.version}" for one in running] if len(running) == 1 else [""]
        self._tell(ReplicaEvent(state, why, culprit=culprit))
        os.kill(os.getpid(), signal.SIGKILL)


def limit_s(slot: Slot, began: float) -> float:
    """How long the run that began then may take: what its version says; else as long as anybody waits for it."""
    given = slot.served.options.run_limit_s
    if given is not None:
        return given
    return max([RUN_LIMIT_S, *(job[1] - began for job in slot.running)])
