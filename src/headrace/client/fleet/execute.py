"""One step of a plan, carried out. What it changes is read first: if somebody else has changed it since the plan was
made, that is a conflict; if it is so already, perhaps by an apply that was cut off, there is nothing to do. Between
that look and the change an ETag holds it, where the API has one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from headrace.client import artifacts, calls, uploads
from headrace.client.calls import Call
from headrace.client.fleet import state
from headrace.client.fleet.plan import Step
from headrace.client.fleet.state import DEPLOYMENT, WAITING, Fields, Key, State
from headrace.client.flows import LOOK_S, default_nan, read_golden
from headrace.client.steps import Flow, Memory, Pause, request, tagged
from headrace.core import resources as r
from headrace.core.errors import Conflict, NotFound, PreconditionFailed, Unavailable, Unprocessable
from headrace.registry.registration import ENGINE_OF_SUFFIX

T = TypeVar("T")
TRIES_MAX = 5
"""Times that a resource is read again after another change, the platform's own mostly, came between."""


@dataclass(frozen=True, slots=True)
class Event:
    """How far a step is."""

    step: Step
    stage: Literal["begun", "waits", "done", "left"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """What the steps of an apply share."""

    reason: str
    wait: bool
    wait_s: float
    watch: Callable[[Event], None] | None

    def tell(self, step: Step, stage: Literal["begun", "waits", "done", "left"], detail: str = "") -> None:
        """Tell who watches."""
        if self.watch is not None:
            self.watch(Event(step, stage, detail))

    def call(self, call: Call[T], **conditions: str) -> Call[T]:
        """A request with the reason, and with conditions: ``if_match``, ``if_none_match``."""
        headers = {name.replace("_", "-"): value for name, value in conditions.items()}
        return replace(call, headers={**headers, "x-reason": quote(self.reason)})


def step(memory: Memory, run: Run, one: Step) -> Flow[bool]:
    """Carry out a step; false where it had to wait and was not to.

    Raises:
        HeadraceError: the platform's refusal; PreconditionFailed for what somebody has changed since the plan.
    """
    if one.key.kind in ("traffic", "override") and one.action != "remove":
        for version in _versions(one):
            if not (yield from _is_ready(memory, run, one, Key("deployment", one.key.model, version))):
                return (yield from _comes_by_itself(memory, one))
    for last in range(TRIES_MAX, 0, -1):
        found, tag = yield from _look(memory, one.key)
        if not _pending(one, found):
            return True
        try:
            yield from _do(memory, run, one, found, tag)
            return True
        except PreconditionFailed:
            if last == 1:
                raise
    raise AssertionError("unreachable")


def _versions(one: Step) -> list[str]:
    (change,) = one.changes
    return (
        sorted(version for version, share in change.new.items() if share)
        if one.key.kind == "traffic"
        else [str(change.new)]
    )


# ------------------------------------------------------------------------------------------------ looking
def _look(memory: Memory, key: Key) -> Flow[tuple[Fields | None, str]]:
    """A resource's fields and the ETag that holds it; None where it is not there."""
    call, convert = _shown(key)
    try:
        found, tag = yield from tagged(memory, call)
    except NotFound:
        return None, ""
    return convert(found).get(key), tag


def _shown(key: Key) -> tuple[Call[Any], Callable[[Any], State]]:
    """How a resource is read."""
    if key.kind == "tenant":
        return calls.show_tenant(key.name), state.of_tenant
    if key.kind in ("model", "grant", "alias"):
        return calls.show_model(key.model), state.of_model
    if key.kind in ("version", "state"):
        return calls.show_version(f"{key.model}@{key.name}"), state.of_version
    if key.kind == "deployment":
        return calls.show_deployment(f"{key.model}@{key.name}"), state.of_deployment
    return calls.show_traffic(key.model), state.of_traffic


def _pending(one: Step, found: Fields | None) -> bool:
    """Whether the step is yet to be done. Raises PreconditionFailed where somebody has done something else."""
    if one.action == "remove":
        if found is None:
            return False
        wanted: Fields | None = None
    else:
        wanted = {change.field: change.new for change in one.changes}
        if found is not None and all(found.get(name) == value for name, value in wanted.items()):
            return False
    if one.action == "create":
        # A version makes its model, and a first one's share comes by itself.
        own = one.key.kind == "model" or (one.key.kind == "traffic" and _leads(one, found))
        if found is not None and not own:
            raise _changed(one, "it was made meanwhile")
        return True
    if found is None:
        raise _changed(one, "it was removed meanwhile")
    for change in one.changes:
        if found.get(change.field) not in (change.old, change.new):
            raise _changed(one, f"{change.field} is {found.get(change.field)!r} now, and was {change.old!r}")
    return True


def _leads(one: Step, found: Fields | None) -> bool:
    return found is None or (len(found["weights"]) == 1 and next(iter(found["weights"])) in _versions(one))


def _changed(one: Step, what: str) -> Conflict:
    return Conflict(f"{one.name} has changed since the plan: {what}", field="files", hint="plan and apply again")


# ------------------------------------------------------------------------------------------------ waiting
def _is_ready(memory: Memory, run: Run, one: Step, key: Key) -> Flow[bool]:
    """Whether a deployment's replicas are ready, waited for where that is wanted."""
    if run.wait:
        yield from ready(memory, run, one, key)
        return True
    found = yield from request(memory, calls.show_deployment(f"{key.model}@{key.name}"))
    return found.ready > 0


def ready(memory: Memory, run: Run, one: Step, key: Key) -> Flow[None]:
    """Wait for a deployment's replicas. Raises Unprocessable where it fails, Unavailable where it is not in time."""
    name = f"{key.model}@{key.name}"
    end = time.monotonic() + run.wait_s
    while True:
        found = yield from request(memory, calls.show_deployment(name))
        if found.ready >= found.replicas:
            return
        if found.state == "failed":
            raise Unprocessable(f"{name} failed: {found.detail}", hint=f"headrace undeploy {name} --yes")
        if time.monotonic() > end:
            raise Unavailable(f"{name} is not ready after {run.wait_s:g} s: {found.state}", hint="apply again")
        run.tell(one, "waits", f"{name}: {found.ready} of {found.replicas} replicas ready")
        yield Pause(LOOK_S)


def _comes_by_itself(memory: Memory, one: Step) -> Flow[bool]:
    """Whether the shares that deployments take once ready are all that the step wants."""
    if one.key.kind != "traffic":
        return False
    policy = yield from request(memory, calls.show_traffic(one.key.model))
    page = yield from request(memory, calls.list_deployments(policy.model, policy.tenant))
    waiting = [(d.version, d.traffic_on_ready) for d in page.items if d.traffic_on_ready is not None]
    return bool(state.projected(policy.weights, sorted(waiting)) == one.changes[0].new)


# ------------------------------------------------------------------------------------------------ doing
def _do(memory: Memory, run: Run, one: Step, found: Fields | None, tag: str) -> Flow[None]:
    key, new = one.key, {change.field: change.new for change in one.changes}
    name = f"{key.model}@{key.name}"
    condition = {"if_match": tag} if tag else {}
    call: Call[Any]
    if key.kind == "tenant":
        yield from _tenant(memory, run, key, new, found is None, condition)
        return
    if key.kind == "version":
        yield from _register(memory, run, one, new)
        return
    if key.kind == "model":
        call = run.call(calls.update_model(key.model, msgspec.convert(state.nest(new), r.ModelUpdate)), **condition)
    elif key.kind == "state":
        call = run.call(calls.approve(name) if new["state"] == "approved" else calls.retire(name))
    elif key.kind == "grant":
        of = calls.revoke_grant if one.action == "remove" else calls.grant
        call = run.call(of(key.model, key.name))
    elif key.kind == "alias":
        remove = one.action == "remove"
        call = (
            calls.remove_alias(key.model, key.name) if remove else calls.set_alias(key.model, key.name, new["version"])
        )
        call = run.call(call, **condition)
    elif key.kind == "override":
        remove = one.action == "remove"
        call = run.call(calls.unpin(key.model, key.name) if remove else calls.pin(key.model, key.name, new["version"]))
    elif key.kind == "traffic":
        call = run.call(calls.set_traffic(key.model, new["weights"]), **condition)
    elif one.action == "remove":
        call = run.call(calls.undeploy(name), **condition)
    else:
        if found is None:
            condition = {"if_none_match": "*"}
        call = run.call(calls.create_deployment(_deployment(one, new, found or {})), **condition)
    yield from request(memory, call)


def _tenant(memory: Memory, run: Run, key: Key, new: Fields, create: bool, condition: dict[str, str]) -> Flow[None]:
    values = state.nest(new)
    if create:
        made = msgspec.convert(values, _Made)
        yield from request(memory, run.call(calls.create_tenant(key.name, made.quota, made.approval)))
        if values.get("state", "active") == "active":
            return
        values, condition = {"state": values["state"]}, {}
    flat = {**values.pop("quota", {}), **values}
    yield from request(
        memory, run.call(calls.update_tenant(key.name, msgspec.convert(flat, r.TenantUpdate)), **condition)
    )


class _Made(msgspec.Struct):
    """What a tenant is made with."""

    quota: r.Quota = r.Quota()
    approval: r.Approval = "optional"


def _deployment(one: Step, new: Fields, found: Fields) -> r.DeploymentCreate:
    """What is there with what is to change: the API replaces a deployment whole."""
    tenant, _, model = one.key.model.partition("/")
    whole = {name: value for name, value in state.nest({**found, **new}).items() if name in DEPLOYMENT}
    share = one.extras.get("traffic_percent", {**found, **new}.get(WAITING))
    given = {"model": model, "tenant": tenant, "version": one.key.number, "traffic_percent": share}
    return msgspec.convert({**whole, **given}, r.DeploymentCreate)


def _register(memory: Memory, run: Run, one: Step, new: Fields) -> Flow[None]:
    path = one.extras.get("artifact")
    values = state.nest(new)
    if path is not None:
        packed = artifacts.pack(Path(path))
        try:
            if packed.digest != new["digest"]:
                raise _changed(one, f"{path} is another file")

            def progress(sent: int, size: int) -> None:
                run.tell(one, "waits", f"{sent} of {size} bytes sent")

            yield from uploads.upload(memory, packed.path, packed.digest, progress)
        finally:
            if packed.temporary:
                packed.path.unlink(missing_ok=True)
    if "options" in values:
        engine = values.get("engine") or ENGINE_OF_SUFFIX.get(Path(values["file_name"]).suffix.lower())
        values["options"] = {"nan": default_nan(engine), **values["options"]}
    body = msgspec.convert({**values, "version": one.key.number}, r.VersionCreate)
    body = msgspec.structs.replace(body, golden=read_golden(one.extras.get("golden")))
    outcome = yield from request(memory, run.call(calls.create_version(one.key.model, body)))
    made = outcome.result
    if made.state == "registered":
        raise Unprocessable(
            f"{one.name} is registered, and its signature tests failed: it may not take traffic",
            field="golden",
            hint=f"headrace models validate {one.key.model}@{made.version} tells which",
        )
