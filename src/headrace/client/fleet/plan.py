"""What has to be done so that the platform is as the files say: steps, each with its reason, in an order in which none
meets a refusal that another would have spared it. Pure.

What a file leaves out is not managed: it stays as it is. What the platform has beyond the files is told, and removed
only where pruning is asked for, of models that the files name and of sections that they have.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from headrace.client.fleet.state import KINDS, WAITING, Fields, Key, Kind, Live, State, parent_of
from headrace.core.errors import InvalidInput
from headrace.core.resources import Change

MARK = "headrace apply"
"""How the reasons of an apply's changes begin: what has another reason was changed by hand."""
PLATFORM = "platform"
"""Who makes changes that nobody asked for."""
RANK: dict[Kind, int] = {kind: rank for rank, kind in enumerate(KINDS)}
"""Which of two steps comes first where neither needs the other."""
LATE = len(RANK)
"""Rank of what takes something away."""
PRUNED: tuple[Kind, ...] = ("grant", "override", "alias", "deployment")


@dataclass(frozen=True, slots=True)
class Desired:
    """What the files say."""

    state: State
    managed: frozenset[tuple[Kind, str]] = frozenset()
    """(kind, model) of the sections that the files have: what else is there is not theirs."""
    extras: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    """Of versions, what is sent along when they are registered: `artifact`, `golden`."""
    parts: Mapping[Key, frozenset[Key]] = field(default_factory=dict)
    """Pipeline -> the versions that it runs."""


class FieldChange(msgspec.Struct, frozen=True):
    """A field that becomes another; null where it was not, or will not be, there."""

    field: str
    old: Any
    new: Any


class Because(msgspec.Struct, frozen=True):
    """A step that comes before, and why."""

    step: str
    why: str


class Hand(msgspec.Struct, frozen=True):
    """The last change of a resource, where somebody made it by hand since the files were applied."""

    change: int
    at: str
    by: str
    action: str
    reason: str | None


class Step(msgspec.Struct):
    """One change of one resource."""

    action: Literal["create", "change", "remove"]
    key: Key
    changes: list[FieldChange]
    after: list[Because] = []
    drift: Hand | None = None
    extras: dict[str, Any] = {}
    """What is sent along that is no field of the resource."""

    @property
    def name(self) -> str:
        """For people."""
        return str(self.key)


class Fault(msgspec.Struct, frozen=True):
    """What cannot be done whatever the order."""

    name: str
    message: str
    hint: str | None = None


class Note(msgspec.Struct, frozen=True):
    """What the platform has and the files do not, and what becomes of it."""

    name: str
    message: str


class Plan(msgspec.Struct):
    """The way from one to the other."""

    steps: list[Step]
    faults: list[Fault]
    notes: list[Note]


def plan(desired: Desired, live: Live, prune: bool = False) -> Plan:
    """Compare and order.

    Args:
        desired: what the files say.
        live: what the platform is.
        prune: remove what is there beside the files.
    """
    faults = list(_faults(desired, live))
    steps = {step.key: step for step in _changes(desired, live)}
    gone, notes = _surplus(desired, live, prune)
    steps |= {step.key: step for step in gone}
    ordered, circle = _order(steps, _edges(steps, desired, live))
    faults += [Fault(str(key), "it waits for itself: what it was made from was made from it") for key in circle]
    return Plan(ordered, faults, notes)


# ------------------------------------------------------------------------------------------------ what differs
def _changes(desired: Desired, live: Live) -> Iterator[Step]:
    for key, wanted in desired.state.items():
        found = live.state.get(key)
        if key.kind == "state" and found is None:
            found = {"state": "validated"}  # what registering gives
        if key.kind == "traffic" and wanted["weights"] == live.projected.get(key.model):
            continue  # so, or on its way there by itself
        if found is None:
            changes = [FieldChange(name, None, value) for name, value in wanted.items()]
            yield Step("create", key, changes, extras=_extras(key, desired, live))
        elif key.kind != "version":
            changes = _differences(wanted, found)
            if changes:
                yield Step("change", key, changes)
    for key in desired.state:
        if key.kind == "traffic" and key in live.state and _differs(desired.state[key], live, key):
            yield from _resets(desired, live, key.model)


def _differs(wanted: Fields, live: Live, key: Key) -> bool:
    return bool(wanted["weights"] != live.projected.get(key.model))


def _differences(wanted: Fields, found: Fields) -> list[FieldChange]:
    """Fields that are given and are otherwise."""
    return [
        FieldChange(name, found.get(name), value) for name, value in wanted.items() if found.get(name, None) != value
    ]


def _resets(desired: Desired, live: Live, model: str) -> Iterator[Step]:
    """Deployments that would yet take a share that the files do not give them."""
    for key, found in live.state.items():
        if key.kind == "deployment" and key.model == model and found.get(WAITING):
            changes = _differences(desired.state.get(key, {}), found)
            yield Step("change", key, [*changes, FieldChange(WAITING, found[WAITING], 0.0)])


def _extras(key: Key, desired: Desired, live: Live) -> dict[str, Any]:
    """What a new resource is made with. Of a model that has no traffic yet, who leads by the files takes it all when
    it is ready, and the others wait for their share rather than race for everything."""
    given = dict(desired.extras.get(key, {}))
    split = desired.state.get(Key("traffic", key.model))
    if key.kind == "deployment" and split is not None and key.model not in live.projected:
        leads = max(split["weights"], key=lambda version: (split["weights"][version], version))
        if key.name != leads:
            given["traffic_percent"] = 0.0
    return given


def _surplus(desired: Desired, live: Live, prune: bool) -> tuple[list[Step], list[Note]]:
    """What is there beside the files: removed, or told."""
    steps, notes = [], []
    for key, found in sorted(live.state.items()):
        if key.kind not in PRUNED or (key.kind, key.model) not in desired.managed or key in desired.state:
            continue
        if key in live.kept and not _used(key, desired, live):
            notes.append(Note(str(key), "a rollback goes back to it; it ends by itself when none does"))
        elif key.kind == "deployment" and _used(key, desired, live):
            notes.append(Note(str(key), "it has traffic, an override or an alias: the files do not say who takes over"))
        elif prune:
            steps.append(Step("remove", key, [FieldChange(name, value, None) for name, value in found.items()]))
        else:
            notes.append(Note(str(key), "not in the files; --prune removes it"))
    return steps, notes


def _final(desired: Desired, live: Live, key: Key) -> Fields:
    return {**live.state.get(key, {}), **desired.state.get(key, {})}


def _used(key: Key, desired: Desired, live: Live) -> bool:
    """Whether a deployment's version will be named by traffic, an override or an alias that stays."""
    if key.name in _final(desired, live, Key("traffic", key.model)).get("weights", ()):
        return True
    return any(
        other.kind in ("override", "alias")
        and other.model == key.model
        and (other in desired.state or (other.kind, other.model) not in desired.managed)
        and str(_final(desired, live, other)["version"]) == key.name
        for other in {**live.state, **desired.state}
    )


# ------------------------------------------------------------------------------------------------ what cannot be
def _faults(desired: Desired, live: Live) -> Iterator[Fault]:
    latest: dict[str, int] = {}
    for key in live.state:
        if key.kind == "version":
            latest[key.model] = max(latest.get(key.model, 0), key.number)
    for key, wanted in desired.state.items():
        found = live.state.get(key)
        for version in _named(key, wanted):
            if version not in desired.state and version not in live.state:
                hint = f"give it in [models.{key.model.partition('/')[2]}.versions.{version.name}]"
                yield Fault(str(key), f"{version} is neither in the files nor registered", hint)
            retired = desired.state.get(Key("state", version.model, version.name), {}).get("state") == "retired"
            if retired and key.kind != "state":
                yield Fault(str(key), f"the files retire {version.model}@{version.name}, and use it here")
        if key.kind == "version" and found is not None:
            for change in _differences(wanted, found):
                yield Fault(
                    str(key),
                    f"{change.field} is {change.old!r}, the files say {change.new!r}: a version never changes",
                    "give what differs a new number",
                )
        elif key.kind == "version":
            if "digest" not in wanted:
                yield Fault(str(key), "it is not registered, and the files do not say of what", "give artifact = PATH")
            if key.number < latest.get(key.model, 0):
                text = f"its number is behind {key.model}@{latest[key.model]}: numbers are given once, and upwards"
                yield Fault(str(key), text, "give it a new number")
        elif key.kind == "state" and found is not None and found["state"] == "retired" != wanted["state"]:
            yield Fault(str(key), "it is retired, for good", "register the model again, as a new version")
        elif key.kind == "model" and found is None and not _new_versions(desired, live, key.model):
            yield Fault(str(key), "it does not exist, and the files give no version of it", "a version makes it")


def _named(key: Key, fields: Fields) -> Iterator[Key]:
    """The versions that a resource needs to be there."""
    numbers: Iterable[str] = ()
    if key.kind in ("deployment", "state"):
        numbers = [key.name]
    elif key.kind in ("override", "alias"):
        numbers = [str(fields["version"])]
    elif key.kind == "traffic":
        numbers = fields["weights"]
    for number in numbers:
        yield Key("version", key.model, number)


def _new_versions(desired: Desired, live: Live, model: str) -> list[Key]:
    return sorted(
        (key for key in desired.state if key.kind == "version" and key.model == model and key not in live.state),
        key=lambda key: key.number,
    )


# ------------------------------------------------------------------------------------------------ order
Edges = dict[Key, dict[Key, str]]
"""Step -> the steps before it, and why each is."""


def _edges(steps: Mapping[Key, Step], desired: Desired, live: Live) -> Edges:
    edges: Edges = {key: {} for key in steps}
    versions: dict[str, list[Key]] = {}
    for key in sorted((key for key in steps if key.kind == "version"), key=lambda key: (key.model, key.number)):
        versions.setdefault(key.model, []).append(key)
    of_model: dict[str, list[Key]] = {}
    for key in steps:
        of_model.setdefault(key.model, []).append(key)
    for key, step in steps.items():
        for before, why in _before(key, step, desired, versions.get(key.model, []), of_model[key.model]):
            if before in steps and before != key:
                edges[key].setdefault(before, why)
    for key, step in steps.items():  # the other way round: nobody may refer to what is retired any more
        if key.kind == "version":
            for named in (*desired.parts.get(key, ()), *_parent(key, step)):
                state = Key("state", named.model, named.name)
                if state in steps and _ends(steps[state]):
                    edges[state][key] = "what is retired cannot be referred to any more"
    return edges


def _ends(step: Step) -> bool:
    """Whether it takes replicas, or the right to have some, away."""
    if step.key.kind == "state":
        return any(change.new == "retired" for change in step.changes)
    stopped = any(change.field == "replicas" and change.new == 0 for change in step.changes)
    return step.action == "remove" or (step.action == "change" and stopped)


def _parent(key: Key, step: Step) -> list[Key]:
    parents = [change.new for change in step.changes if change.field == "lineage.parent" and change.new]
    try:
        return [parent_of(key.model, text) for text in parents]
    except InvalidInput:
        return []  # the platform says what is wrong with it


def _before(
    key: Key, step: Step, desired: Desired, versions: list[Key], beside: list[Key]
) -> Iterator[tuple[Key, str]]:
    """What a step waits for, where that is a step too. `versions` and `beside`: new versions and steps of its model."""
    yield Key("tenant", "", key.tenant), "a model belongs to a tenant"
    if key.kind == "version":
        place = versions.index(key)
        if place:
            yield versions[place - 1], "numbers are given upwards"
        for named in _parent(key, step):
            yield named, "it was made from it"
        for part in sorted(desired.parts.get(key, ())):
            yield part, "it runs it"
            yield Key("grant", part.model, key.tenant), "it runs a model of another tenant"
    elif key.kind in ("model", "grant") and versions:
        yield versions[0], "a model begins with its first version"
    if key.kind in ("grant", "override"):
        yield Key("tenant", "", key.name), "the tenant must be there"
    if key.kind == "deployment" and not _ends(step):
        yield Key("model", key.model), "its settings hold from the first request on"
    wanted = desired.state.get(key, {})
    for version in _named(key, wanted) if wanted else ():
        yield version, "it must be registered"
        state = Key("state", version.model, version.name)
        if key.kind != "state":
            yield state, "only what is approved may take traffic"
        deployment = Key("deployment", version.model, version.name)
        if key.kind in ("traffic", "override", "alias"):
            yield deployment, "requests go to what is ready"
    if key.kind == "traffic":
        for other in beside:
            if other.kind == "deployment":
                yield other, "no share is taken after it"
    if _ends(step) and key.kind in ("state", "deployment"):
        for other in beside:
            if other.kind in ("traffic", "override", "alias") or (key.kind == "state" and other.kind == "deployment"):
                yield other, "nothing may need it any more"


def _order(steps: Mapping[Key, Step], edges: Edges) -> tuple[list[Step], list[Key]]:
    """The steps in order, and those that wait for each other in a circle."""
    edges = {
        key: {before: why for before, why in befores.items() if not _turned(steps, edges, key, before)}
        for key, befores in edges.items()
    }
    waiting = {key: len(befores) for key, befores in edges.items()}
    following: dict[Key, list[Key]] = {}
    for key, befores in edges.items():
        for before in befores:
            following.setdefault(before, []).append(key)
    free = [(_place(steps[key]), key) for key, count in waiting.items() if not count]
    heapq.heapify(free)
    ordered: list[Step] = []
    earlier: dict[Key, set[Key]] = {}  # all that a step waits for, through others too
    while free:
        _, key = heapq.heappop(free)
        implied = {one for before in edges[key] for one in earlier[before]}
        earlier[key] = implied | edges[key].keys()
        told = ((before, why) for before, why in sorted(edges[key].items()) if before not in implied)
        steps[key].after = [Because(str(before), why) for before, why in told]
        ordered.append(steps[key])
        for later in following.get(key, ()):
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(free, (_place(steps[later]), later))
    return ordered, sorted(key for key, count in waiting.items() if count)


def _turned(steps: Mapping[Key, Step], edges: Edges, key: Key, before: Key) -> bool:
    """Of a deployment that ends and traffic that leaves it, the traffic comes first."""
    return (
        key.kind in ("traffic", "override", "alias") and before.kind in ("deployment", "state") and _ends(steps[before])
    )


def _place(step: Step) -> tuple[int, str, int, str]:
    rank = LATE + (step.key.kind == "state") if _ends(step) else RANK[step.key.kind]
    return rank, step.key.model, step.key.number, step.key.name


# ------------------------------------------------------------------------------------------------ drift
def _audited(key: Key) -> tuple[str, tuple[str, ...]]:
    """Entity and actions by which the audit tells of a resource."""
    name = key.model.partition("/")[2]
    entity = {
        "tenant": key.name,
        "version": f"{name}@{key.name}",
        "state": f"{name}@{key.name}",
        "deployment": f"{name}@{key.name}",
        "alias": f"{name}@{key.name}",
    }.get(key.kind, name)
    actions: dict[Kind, tuple[str, ...]] = {
        "tenant": ("tenant.",),
        "version": ("version.delete",),
        "state": ("version.approve", "version.retire", "version.validate"),
        "model": ("model.update",),
        "grant": ("model.grant", "model.revoke"),
        "alias": ("model.alias", "model.unalias"),
        "deployment": ("deployment.",),
        "traffic": ("traffic.set", "traffic.rollback"),
        "override": ("traffic.pin", "traffic.unpin"),
    }
    return entity, actions[key.kind]


def blame(steps: Iterable[Step], changes: Iterable[Change]) -> None:
    """Say of each step whose resource somebody has last changed by hand who that was.

    Args:
        steps: of a plan.
        changes: the audit, newest first, as far back as one wants to look.
    """
    by_entity: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        by_entity.setdefault((change.tenant, change.entity), []).append(change)
    for step in steps:
        entity, actions = _audited(step.key)
        for change in by_entity.get((step.key.tenant, entity), ()):
            about = {**(change.before or {}), **(change.after or {})}.get("tenant", step.key.name)
            if not change.action.startswith(actions) or (
                step.key.kind in ("grant", "override") and about != step.key.name
            ):
                continue
            if change.actor != PLATFORM and not (change.reason or "").startswith(MARK):
                step.drift = Hand(change.id, change.at, change.actor, change.action, change.reason)
            break
