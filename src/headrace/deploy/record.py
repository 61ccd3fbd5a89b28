"""A replica as its node's agent knows it: what it is told, what it said last, what it keeps from eviction."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.core.errors import HeadraceError, RetryLater
from headrace.core.specs import ReplicaEvent, ReplicaSpec, ReplicaState, ReplicaStatus
from headrace.deploy import states
from headrace.deploy.catalog import Catalog
from headrace.deploy.child import Child


@dataclass
class ReplicaRecord:
    """A replica and what it said last."""

    spec: ReplicaSpec
    begun: float = 0.0
    """When the command to start it came, by the loop's clock."""
    child: Child | None = None
    state: ReplicaState = "starting"
    detail: str = ""
    timings_s: dict[str, float] = field(default_factory=dict)
    stopping: bool = False
    stuck: bool = False
    address: str = ""
    last_words: str = ""
    """What its watchdog said just before it killed the process."""
    bringing: asyncio.Task[None] | None = None
    """Brings its artifacts here, before its process starts."""
    waits_for: Callable[[], str] = str
    """Tells people what it waits for meanwhile."""
    held: list[int] = field(default_factory=list)
    """Descriptors that keep its artifacts from being evicted."""
    catalog: Catalog | None = None
    """Of a pack."""
    culprit: str = ""

    def timed(self, event: ReplicaEvent, now: float) -> None:
        """Note how long it took from the command, which came at `begun`, to this event."""
        if event.stuck is None and event.state == "loading":
            self.timings_s["start"] = now - self.begun - self.timings_s.get("pull", 0.0)
        elif event.stuck is None and event.state == "ready" and "total" not in self.timings_s:
            self.timings_s["total"] = now - self.begun

    def stop(self) -> None:
        """It was told to: whatever it still says of loading or being ready is late."""
        self.stopping = True
        if self.state not in states.ENDED:
            self.state = "draining"

    def said(self, event: ReplicaEvent) -> None:
        """Take an event line. Raises IllegalTransition for a step that a replica may not make."""
        if event.stuck is not None:
            self.stuck = event.stuck
            return
        if event.entry is not None:
            if self.catalog is not None:
                self.catalog.said(event.entry)
            return
        if event.state == "crashed":
            self.culprit = event.culprit
            # It is about to be, and must not leave the snapshot before its routers have seen it die: they would take
            # it for one that leaves in good order, and send what has killed it to another as if nothing were.
            self.last_words = event.detail
            return
        self.state = states.step(states.REPLICA, self.state, event.state)
        self.detail = event.detail
        self.timings_s = self.timings_s | event.timings_s
        self.address = event.address or self.address

    def ended(self, code: int) -> None:
        """Its process is no more."""
        while self.held:
            os.close(self.held.pop())
        if self.catalog is not None:
            self.culprit = self.culprit or self.catalog.on_trial()
            self.catalog.close()
        if self.state in states.ENDED:
            return  # it has said why itself
        if self.stopping or (code == 0 and self.state == "draining"):
            self.state = states.step(states.REPLICA, self.state, "stopped")
        else:
            self.state = states.step(states.REPLICA, self.state, "crashed")
            self.detail = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            if self.last_words:
                self.detail = self.last_words
            elif code == -signal.SIGALRM:
                self.detail = "watchdog: a run kept the interpreter for longer than its limit"

    def unstartable(self, error: HeadraceError) -> None:
        """Its artifacts cannot be brought here: for good, or this time."""
        self.detail = error.message
        if not self.stopping:
            reached: ReplicaState = "crashed" if isinstance(error, RetryLater) else "failed"
            self.state = states.step(states.REPLICA, self.state, reached)
        self.ended(0)

    def status(self) -> ReplicaStatus:
        """As the fleet port shows it."""
        pid = self.child.pid if self.child is not None else 0
        origin = self.child.origin if self.child is not None else ""
        entries = self.catalog.entries() if self.catalog is not None else ()
        detail = self.detail or self.waits_for()
        return ReplicaStatus(
            self.spec,
            self.state,
            pid,
            detail,
            self.timings_s,
            self.stuck,
            origin,
            entries,
            self.culprit,
            self.address,
        )
