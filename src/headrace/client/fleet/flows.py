"""Fleet files and the platform brought together: what the client's `fleet` does, as steps without I/O."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from headrace.client import calls
from headrace.client.fleet import execute, file, state
from headrace.client.fleet import export as writing
from headrace.client.fleet.execute import Event, Run
from headrace.client.fleet.file import Paths
from headrace.client.fleet.plan import MARK, Fault, Plan, Step, blame
from headrace.client.fleet.plan import plan as compare
from headrace.client.fleet.state import Live
from headrace.client.flows import all_pages
from headrace.client.steps import Flow, Memory, Send, patiently, request
from headrace.core.errors import Conflict, HeadraceError

CHANGES_MAX = 1000
"""Rows of the audit in which the last change of what differs is looked for."""


class Refused(msgspec.Struct):
    """The step at which an apply stopped, and the platform's reason."""

    step: str
    code: str
    message: str
    field: str | None = None
    hint: str | None = None


class Applied(msgspec.Struct):
    """What an apply did, and what it did not."""

    done: list[Step]
    waiting: list[Step]
    """Left because what they need is not ready, where waiting was not asked for."""
    refused: Refused | None = None
    left: list[Step] = []
    """After the one that was refused."""


def read_live(memory: Memory) -> Flow[Live]:
    """All that the key reaches, in a request per kind and thousand."""
    tenants = yield from all_pages(memory, calls.list_tenants())
    models = yield from all_pages(memory, calls.list_models())
    versions = yield from all_pages(memory, calls.list_all_versions())
    deployments = yield from all_pages(memory, calls.list_deployments())
    policies = yield from all_pages(memory, calls.list_traffic())
    return state.live(tenants, models, versions, deployments, policies)


def plan(memory: Memory, files: Paths, *, prune: bool = False) -> Flow[Plan]:
    """What has to be done so that the platform is as the files say; nothing is changed.

    Args:
        files: one fleet file or several, or folders of them.
        prune: remove what the platform has beside the files, in the sections that they have.

    Raises:
        InvalidInput: names file and field.
    """
    own = yield from request(memory, calls.show_key())
    desired = file.read(files, own.tenant)
    found = compare(desired, (yield from read_live(memory)), prune)
    for step in found.steps:
        if step.key.kind == "version" and "artifact" not in step.extras:
            digest = next(change.new for change in step.changes if change.field == "digest") if step.changes else ""
            answer = yield from patiently(memory, Send("control", "HEAD", f"/api/v1/artifacts/{digest}"), True)
            if digest and answer.status == 404:
                text = f"artifact {digest[:12]}... is not stored on this platform"
                found.faults.append(Fault(step.name, text, "give artifact = PATH"))
    if found.steps:
        page = yield from request(memory, calls.list_changes(limit=CHANGES_MAX))
        blame(found.steps, page.items)
    return found


def apply(
    memory: Memory,
    what: Plan | Paths,
    *,
    prune: bool = False,
    reason: str | None = None,
    wait: bool = True,
    wait_s: float = 300.0,
    watch: Callable[[Event], None] | None = None,
) -> Flow[Applied]:
    """Make the platform as the files say, step by step, up to the first that is refused. What somebody has changed
    since the plan was made is refused rather than overwritten. Cut off anywhere, it is run again.

    Args:
        what: a plan, or the files to make one of.
        prune: see `plan`; of files only.
        reason: for the audit.
        wait: until what was deployed is ready; without it, traffic that would have to wait is left.
        wait_s: how long at most, in seconds, each time.
        watch: is told of each step that begins, waits or is done.

    Raises:
        InvalidInput: names file and field.
        Conflict: the plan has faults; nothing was done.
    """
    todo = what if isinstance(what, Plan) else (yield from plan(memory, what, prune=prune))
    if todo.faults:
        first = todo.faults[0]
        more = f" (and {len(todo.faults) - 1} more)" if len(todo.faults) > 1 else ""
        raise Conflict(f"{first.name}: {first.message}{more}", field="files", hint=first.hint)
    run = Run(f"{MARK}: {reason}" if reason else MARK, wait, wait_s, watch)
    result = Applied([], [])
    for place, step in enumerate(todo.steps):
        try:
            run.tell(step, "begun")
            done = yield from execute.step(memory, run, step)
        except (HeadraceError, OSError) as error:
            result.refused, result.left = _refused(step, error), todo.steps[place + 1 :]
            return result
        (result.done if done else result.waiting).append(step)
        run.tell(step, "done" if done else "left")
    if wait:
        deployed = [step for step in result.done if step.key.kind == "deployment" and step.action != "remove"]
        for step in deployed:
            try:
                yield from execute.ready(memory, run, step, step.key)
            except HeadraceError as error:
                result.refused = _refused(step, error)
                return result
    return result


def _refused(step: Step, error: Exception) -> Refused:
    if isinstance(error, HeadraceError):
        return Refused(step.name, error.code, error.message, error.field, error.hint)
    return Refused(step.name, "invalid-input", str(error))


def export(memory: Memory, tenant: str | None = None) -> Flow[str]:
    """The platform as a fleet file's text, of all that the key reaches or of one tenant."""
    return writing.written((yield from read_live(memory)).state, tenant)
