"""Desired deployments and the fleet as it is -> what to start and stop. Pure: it is given the time.

A replica that crashes is started again after a pause that doubles, and is short again once all replicas have been
ready for a minute. One that says itself that it cannot serve, or that crashes three times before any was ready, fails
its deployment, which then rests until somebody changes it. Scaling down stops what is not ready first, then the
youngest. Replicas that were started otherwise than is wanted now are replaced one at a time: one more is started, and
one of the old is stopped when it is ready. One that is stuck in a run counts no more, so that a spare is ready before
it is killed; it is left alone, and counts again should that run end. One that is lost counts no more either, and is
stopped when as many as are wanted are ready without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from headrace.core.resources import DeploymentState
from headrace.core.specs import ReplicaStatus
from headrace.deploy.states import ENDED

BACKOFF_S = (0.2, 30.0)
"""First and longest pause before a restart."""
CALM_S = 60.0
"""After so long with all replicas ready, crashes are forgotten: a model that dies each minute is not in a crash loop,
one that dies as soon as it is ready is."""
CRASHES_MAX = 3
"""Crashes before the first ready replica that fail a deployment."""
STARTING = ("starting", "loading", "warming")
"""States of a process that is on its way, and takes the machine's time."""
LIVE = ("pulling", *STARTING, "ready")

Target = tuple[str, int]
"""(``tenant/name``, version)."""


@dataclass(frozen=True, slots=True)
class Want:
    """A deployment as desired."""

    target: Target
    replicas: int
    revision: int
    threads: int | None = None
    """What each replica shall have; those with another number are replaced one by one. None: any will do."""
    memory_mb: int | None = None
    """Likewise, where `threads` is given."""
    compute: float | None = None
    """Likewise."""
    leaving: frozenset[str] = frozenset()
    """Ids of replicas that are to be replaced likewise, wherever they are not where they should be."""


@dataclass(slots=True)
class Memory:
    """What must be remembered of a deployment between ticks."""

    revision: int = 0
    crashes: int = 0
    not_before: float = 0.0
    was_ready: bool = False
    calm_since: float | None = None
    """Since when all replicas have been ready."""
    failure: str = ""
    last_crash: str = ""
    noticed: set[str] = field(default_factory=set)
    """Dead replicas that were counted, and whose record the fleet still shows."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A deployment as it is, with the reason."""

    state: DeploymentState
    ready: int
    detail: str
    revision: int = 0
    """Of a failure: which of the deployment's; a later one is to be tried again."""


@dataclass(frozen=True, slots=True)
class Death:
    """A replica that has ended by itself."""

    target: Target
    replica: str
    detail: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now."""

    start: list[Target] = field(default_factory=list)
    """One entry per replica to start."""
    stop: list[str] = field(default_factory=list)
    """Ids of replicas to drain and stop."""
    forget: list[str] = field(default_factory=list)
    """Ids of dead replicas whose record was taken note of."""
    standings: dict[Target, Standing] = field(default_factory=dict)
    deaths: list[Death] = field(default_factory=list)
    """Replicas that have ended by themselves since the last look."""
    wake_at: float | None = None
    """When the next pause is over."""


def target_of(status: ReplicaStatus) -> Target:
    """What a replica serves; of a pack, which serves many, no model and its number."""
    if status.spec.pack is not None:
        return "", status.spec.pack.number
    served = status.spec.versions[0]
    return served.model, served.version


def reconcile(
    wants: Sequence[Want],
    statuses: Sequence[ReplicaStatus],
    draining: Collection[str],
    memory: dict[Target, Memory],
    now: float,
) -> Plan:
    """One look at the world.

    Args:
        wants: what is desired.
        statuses: every replica that the fleet knows, oldest first.
        draining: ids of those that were told to stop.
        memory: of earlier ticks; updated.
        now: monotonic seconds.
    """
    plan = Plan()
    wanted = {want.target: want for want in wants}
    for gone in memory.keys() - wanted.keys():
        del memory[gone]
    by_target: dict[Target, list[ReplicaStatus]] = {target: [] for target in wanted}
    for status in statuses:
        target = target_of(status)
        if target in wanted:
            by_target[target].append(status)
        elif status.state in LIVE and status.spec.id not in draining:
            plan.stop.append(status.spec.id)
        elif status.state not in LIVE and status.state != "draining":
            plan.forget.append(status.spec.id)
    wakes = []
    for target, want in wanted.items():
        note = memory.setdefault(target, Memory())
        if note.revision != want.revision:
            memory[target] = note = Memory(want.revision, noticed=note.noticed)
        _notice_deaths(want, by_target[target], draining, note, plan, now)
        live = [s for s in by_target[target] if s.state in LIVE and s.spec.id not in draining]
        lost = [s.spec.id for s in live if s.lost]
        live = [s for s in live if not s.lost and not (s.stuck and want.replicas)]
        ready = [s for s in live if s.state == "ready"]
        _notice_calm(len(ready), want, note, now)
        plan.stop.extend(_surplus(want, live))
        if len(ready) >= want.replicas:
            plan.stop.extend(lost)
        missing = _missing(want, live)
        if missing and not note.failure:
            if now >= note.not_before:
                plan.start.extend([target] * missing)
            else:
                wakes.append(note.not_before)
        plan.standings[target] = _standing(want, live, ready, note, now)
    return replace(plan, wake_at=min(wakes, default=None))


def outdated(want: Want, status: ReplicaStatus) -> bool:
    """Whether a replica was started otherwise, or elsewhere, than is wanted now."""
    if status.spec.id in want.leaving:
        return True
    wanted = (want.threads, want.memory_mb, want.compute)
    return want.threads is not None and (status.spec.threads, status.spec.memory_mb, status.spec.compute) != wanted


def _surplus(want: Want, live: Sequence[ReplicaStatus]) -> list[str]:
    """Ids of replicas to stop: not ready before ready, outdated before others, then the youngest."""
    excess = len(live) - want.replicas
    replaces = any(s.state != "ready" and not outdated(want, s) for s in live)
    if replaces and any(s.state == "ready" and outdated(want, s) for s in live) and want.replicas:
        excess -= 1  # one more than wanted, while the new one is on its way
    if excess <= 0:
        return []
    order = sorted(enumerate(live), key=lambda pair: (pair[1].state == "ready", not outdated(want, pair[1]), -pair[0]))
    return [status.spec.id for _, status in order[:excess]]


def _missing(want: Want, live: Sequence[ReplicaStatus]) -> int:
    """How many replicas to start."""
    if len(live) == want.replicas and all(s.state == "ready" for s in live):
        return int(any(outdated(want, s) for s in live))
    return max(want.replicas - len(live), 0)


def _notice_deaths(
    want: Want,
    statuses: Sequence[ReplicaStatus],
    draining: Collection[str],
    note: Memory,
    plan: Plan,
    now: float,
) -> None:
    counted = note.noticed
    note.noticed = {status.spec.id for status in statuses if status.state in ENDED}
    for status in statuses:
        if status.spec.id in counted:
            pass  # forgetting takes the fleet a while: a death counts once, however often its record is seen
        elif status.state == "failed" and not want.leaving:
            plan.deaths.append(Death(target_of(status), status.spec.id, status.detail))
            note.failure = status.detail or "the replica could not serve the version"
        elif status.state in ENDED[1:] and status.spec.id not in draining:
            # One that cannot serve where it is to move to is no reason to give those up that can where they are.
            plan.deaths.append(Death(target_of(status), status.spec.id, status.detail))
            if status.lost:
                continue  # with its node: no fault of the model's
            note.crashes += 1
            note.last_crash = status.detail
            note.not_before = now + pause_s(note.crashes)
            if note.crashes >= CRASHES_MAX and not note.was_ready:
                note.failure = f"crashed {note.crashes} times before it was ready: {status.detail}"
    plan.forget.extend(status.spec.id for status in statuses if status.state in ENDED)


def pause_s(crashes: int) -> float:
    """Seconds before the restart that follows so many crashes."""
    first, longest = BACKOFF_S
    return min(first * 2.0 ** min(crashes - 1, 30), longest)  # bounded: a float's exponent is


def _notice_calm(ready: int, want: Want, note: Memory, now: float) -> None:
    note.was_ready = note.was_ready or ready > 0
    if ready < max(want.replicas, 1):
        note.calm_since = None
    elif note.calm_since is None:
        note.calm_since = now
    elif now - note.calm_since >= CALM_S:
        note.crashes = 0


def _standing(
    want: Want, live: Sequence[ReplicaStatus], ready: Sequence[ReplicaStatus], note: Memory, now: float
) -> Standing:
    if note.failure:
        return Standing("failed", len(ready), note.failure, want.revision)
    if want.replicas and len(ready) >= want.replicas:
        return Standing("ready", len(ready), f"has crashed lately ({note.last_crash})" if note.crashes else "")
    if now < note.not_before:
        pause = note.not_before - now
        state: DeploymentState = "ready" if ready else "starting"
        return Standing(state, len(ready), f"crashed ({note.last_crash}); starts again in {pause:.1f} s")
    if ready:
        return Standing("ready", len(ready), f"{len(ready)} of {want.replicas} replicas ready")
    if want.replicas == 0:
        return Standing("stopped", 0, "scaled to 0 replicas")
    return (
        Standing("starting", 0, live[0].detail or live[0].state)
        if live
        else Standing("requested", 0, "no replica has started yet")
    )


def retire(
    had_traffic: Collection[Target],
    current: Mapping[str, Collection[int]],
    previous: Mapping[str, Collection[int]],
    pinned: Mapping[str, Collection[int]],
) -> list[Target]:
    """Deployments that may be stopped: they had traffic, and are in no policy in force, none that a rollback would
    put back, and no override. So the version before the current one stays warm.

    Args:
        had_traffic: deployments that have had traffic.
        current: model -> versions in the policy in force.
        previous: model -> versions in the one before.
        pinned: model -> versions that overrides name.
    """
    return [
        (model, version)
        for model, version in had_traffic
        if all(version not in where.get(model, ()) for where in (current, previous, pinned))
    ]
