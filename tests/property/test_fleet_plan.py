"""A fleet's plan: carried out on a platform that is a dict, it leads to what the files say, in an order in which every
step finds what it needs; an export, read back, is the same."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.client.fleet.export import written
from headrace.client.fleet.file import read
from headrace.client.fleet.plan import Desired, Plan, Step, plan
from headrace.client.fleet.state import KINDS, Key, Live, State, whole_weights

TENANTS, MODELS, VERSIONS = ("default", "risk"), ("default/churn", "risk/fraud"), (1, 2, 3)
ALL = frozenset((kind, model) for kind in KINDS for model in MODELS)


def version(model: str, number: int, parent: int | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"digest": f"{model[-1]}{number}".encode().hex().rjust(64, "0"), "file_name": "m.onnx"}
    fields |= {"engine": "onnx", "signature.inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]}
    fields["signature.outputs"] = []
    return {**fields, "lineage.parent": f"{model.partition('/')[2]}@{parent}"} if parent else fields


@st.composite
def states(draw: st.DrawFn, versions: Mapping[str, int] | None = None) -> State:
    """A platform that could be; with at least these versions of each model."""
    state: State = {
        Key("tenant", "", name): {"state": "active", "quota.burst": float(draw(st.integers(1, 3)))} for name in TENANTS
    }
    for model in MODELS:
        least = (versions or {}).get(model, 0)
        count = draw(st.integers(least, len(VERSIONS)))
        if not count:
            continue
        numbers = list(range(1, count + 1))
        for n in numbers:
            state[Key("version", model, str(n))] = version(model, n, n - 1 if n % 2 == 0 else None)
            state[Key("state", model, str(n))] = {"state": "validated"}
        state[Key("model", model)] = {
            "timeout_s": float(draw(st.integers(1, 3))),
            "tags": draw(st.sampled_from([{}, {"a": "b"}])),
        }
        deployed = draw(st.lists(st.sampled_from(numbers), unique=True))
        for n in deployed:
            state[Key("deployment", model, str(n))] = {"replicas": draw(st.integers(1, 3)), "threads": 1}
        if deployed:
            first = draw(st.integers(1, 100)) if len(deployed) > 1 else 100
            weights = {str(deployed[0]): float(first)} | ({str(deployed[1]): 100.0 - first} if first < 100 else {})
            state[Key("traffic", model)] = {"weights": whole_weights(weights)}
            if draw(st.booleans()):
                state[Key("override", model, "risk")] = {"version": draw(st.sampled_from(deployed))}
        if draw(st.booleans()):
            state[Key("alias", model, "champion")] = {"version": draw(st.sampled_from(numbers))}
        if draw(st.booleans()):
            state[Key("grant", model, "risk" if model[0] == "d" else "default")] = {}
    return state


def live(state: State) -> Live:
    weights = {key.model: fields["weights"] for key, fields in state.items() if key.kind == "traffic"}
    return Live(state, weights)


def counts(state: State) -> dict[str, int]:
    return {model: sum(key.kind == "version" and key.model == model for key in state) for model in MODELS}


def carry_out(step: Step, state: State) -> None:
    """One step, refused as the platform would refuse it."""
    key = step.key
    if key.kind != "tenant":
        assert Key("tenant", "", key.tenant) in state
    if key.kind == "version":
        numbers = [other.number for other in state if other.kind == "version" and other.model == key.model]
        assert key.number > max(numbers, default=0)
        state.setdefault(Key("model", key.model), {"timeout_s": 30.0, "tags": {}})
        state[Key("state", key.model, key.name)] = {"state": "validated"}
    elif key.kind != "tenant":
        assert Key("model", key.model) in state
    if key.kind in ("grant", "override"):
        assert Key("tenant", "", key.name) in state
    new = {change.field: change.new for change in step.changes}
    if step.action == "remove":
        if key.kind == "deployment":
            split = state.get(Key("traffic", key.model), {"weights": {}})["weights"]
            assert key.name not in split
            used = [k for k in state if k.kind == "override" and k.model == key.model]
            assert all(str(state[k]["version"]) != key.name for k in used)
        del state[key]
        return
    needed = {"traffic": list(new.get("weights", ())), "override": [str(new.get("version"))]}.get(key.kind, [])
    for number in needed:
        assert Key("deployment", key.model, number) in state
    if key.kind in ("deployment", "alias"):
        assert Key("version", key.model, key.name if key.kind == "deployment" else str(new["version"])) in state
    if step.action == "create" and key.kind != "state":
        assert key not in state or key.kind == "model"
    state[key] = {**state.get(key, {}), **new}


def applied(found: Plan, before: State) -> State:
    after = dict(before)
    for step in found.steps:
        carry_out(step, after)
    return after


@st.composite
def changes(draw: st.DrawFn) -> tuple[State, State]:
    before = draw(states())
    return before, draw(states(counts(before)))


@given(changes())
def test_the_plan_leads_to_what_the_files_say(pair: tuple[State, State]) -> None:
    before, wanted = pair
    desired = Desired(wanted, ALL)
    found = plan(desired, live(before), prune=True)
    assert found.faults == []
    after = applied(found, before)
    for key, fields in wanted.items():
        assert {name: after[key][name] for name in fields} == fields
    left = after.keys() - wanted.keys()
    # A split or a model's fields are not removed: they have no end but another.
    assert {key.kind for key in left} <= {"traffic", "model", "deployment"}
    again = plan(desired, live(after), prune=True)
    assert (again.steps, again.faults) == ([], [])


@given(changes())
def test_without_pruning_nothing_goes_and_the_surplus_is_told(pair: tuple[State, State]) -> None:
    before, wanted = pair
    found = plan(Desired(wanted, ALL), live(before))
    assert all(step.action != "remove" for step in found.steps)
    assert before.keys() <= applied(found, before).keys()
    surplus = {str(k) for k in before.keys() - wanted.keys() if k.kind in ("grant", "override", "alias", "deployment")}
    assert {note.name for note in found.notes} == surplus


@given(changes())
def test_cut_off_anywhere_and_planned_again_it_comes_to_the_same(pair: tuple[State, State]) -> None:
    before, wanted = pair
    desired = Desired(wanted, ALL)
    steps = plan(desired, live(before), prune=True).steps
    whole = applied(plan(desired, live(before), prune=True), before)
    for cut in range(len(steps)):
        halfway = dict(before)
        for step in steps[:cut]:
            carry_out(step, halfway)
        rest = plan(desired, live(halfway), prune=True)
        assert applied(rest, halfway) == whole
        assert len(rest.steps) <= len(steps) - cut


@given(states())
def test_every_reason_names_a_step_that_comes_before(state: State) -> None:
    seen: set[str] = set()
    for step in plan(Desired(state), Live({}, {})).steps:
        assert {because.step for because in step.after} <= seen
        seen.add(step.name)


@given(states())
def test_an_export_makes_the_same_platform_again(tmp_path_factory: Any, state: State) -> None:
    folder: Path = tmp_path_factory.mktemp("export")
    text = written(state)
    (folder / "fleet.toml").write_text(text)
    tomllib.loads(text)
    desired = read(folder, "default")
    assert plan(desired, live(state), prune=True) == Plan([], [], [])
    rebuilt = applied(plan(desired, Live({}, {})), {})
    assert written(rebuilt) == text


@given(st.dictionaries(st.text(), st.text(), max_size=3), st.text())
def test_any_text_survives_an_export(tmp_path_factory: Any, tags: dict[str, str], description: str) -> None:
    key = Key("model", "default/churn")
    state: State = {key: {"description": description, "tags": tags}}
    path: Path = tmp_path_factory.mktemp("text") / "fleet.toml"
    path.write_text(written(state))
    assert read(path, "default").state[key] == state[key]
