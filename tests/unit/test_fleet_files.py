"""Fleet files: what they may say, how what they may not is told; and plans by tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.client.fleet import state
from headrace.client.fleet.file import read
from headrace.client.fleet.plan import MARK, Desired, blame, plan
from headrace.client.fleet.state import DEPLOYMENT, MODEL, TENANT, VERSION, Key, Live, State
from headrace.core import resources as r
from headrace.core.errors import InvalidInput

CHURN = "default/churn"
V1, V2 = Key("version", CHURN, "1"), Key("version", CHURN, "2")
D1, D2 = Key("deployment", CHURN, "1"), Key("deployment", CHURN, "2")
TRAFFIC, MODEL_KEY = Key("traffic", CHURN), Key("model", CHURN)


# ------------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize(
    ("text", "field", "said", "hint"),
    [
        ("[modles.churn]", "modles", "no field 'modles'", "did you mean models?"),
        ("[models.churn]\ntimeouts = 1", "models.churn.timeouts", "no field", "did you mean timeout_s?"),
        ("[models.churn]\ntimeout_s = 'x'", "models.churn.timeout_s", "Expected `float | null`, got `str`", None),
        ("[models.churn.deployments.1]\nreplcas = 2", "models.churn.deployments.1.replcas", "no field", "replicas"),
        ("[models.churn.deployments.one]", "models.churn.deployments", "'one', expected a version's number", None),
        ("[models.churn.deployments]\n1 = 2", "models.churn.deployments.1", "expected a table", None),
        ("[models.churn.traffic]\nweights = { 1 = 60 }", "models.churn.traffic", "add up to 60", None),
        ("[models.churn.traffic]\nweights = { champion = 100 }", "models.churn.traffic.weights", "'champion'", None),
        ("[models.churn.versions.1]\nengin = 'onnx'", "models.churn.versions.1.engin", "no field", "engine?"),
        ("[models.churn.versions.1]\nengine = 'onx'", "models.churn.versions.1.engine", "'onx'", None),
        (
            "[models.churn.versions.1]\noptions = { nam = 'x' }",
            "models.churn.versions.1.options.nam",
            "no field",
            "nan?",
        ),
        ("[models.churn.versions.1]\nstate = 'aproved'", "models.churn.versions.1.state", "'aproved'", "approved?"),
        ("[models.churn.versions.1]\nartifact = 'gone.onnx'", "models.churn.versions.1.artifact", "not exist", None),
        ("[models.churn.versions.1]\ngolden = 'gone.json'", "models.churn.versions.1.golden", "No such file", None),
        ("[models.churn.versions.1]\ndigest = 'ab'", "models.churn.versions.1.file_name", "without file_name", None),
        ("[models.'churn@1']", "models.churn@1", "names a version", None),
        ("[models.'a b']", "models.a b", "is not a name", None),
        ("[tenants.risk]\nquota = { rate = 1 }", "tenants.risk.quota.rate", "no field", "rate_per_s"),
        ("[tenants.risk]\napi_key = 'hr_1'", "tenants.risk.api_key", "no field", "known: state, quota, approval"),
        ("[models.churn]\ngrants = 'risk'", "models.churn.grants", "Expected `array`", None),
        ("[models.churn", "files", "not TOML", None),
    ],
)
def test_what_is_wrong_is_told_by_file_and_field(
    tmp_path: Path, text: str, field: str, said: str, hint: str | None
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read(path, "default")
    assert caught.value.field == field
    assert str(path) in caught.value.message and said in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


def test_several_files_and_folders_are_one_fleet_and_nothing_stands_twice(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "tenants.toml").write_text("[tenants.risk]\n")
    (folder / "a.toml").write_text("tenant = 'risk'\n[models.fraud]\ntimeout_s = 1\n")
    (folder / "b.toml").write_text("[models.churn]\n[models.'growth/lead']\n")
    found = read([tmp_path / "tenants.toml", folder, folder / "b.toml"], "own")
    assert {key.model for key in found.state if key.kind == "model"} == {"risk/fraud", "own/churn", "growth/lead"}
    (folder / "c.toml").write_text("[models.'own/churn']\n")
    with pytest.raises(InvalidInput, match=r"c\.toml: model own/churn stands here and in .*b\.toml"):
        read(folder, "own")
    with pytest.raises(InvalidInput, match="there is no"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty", "own")


def test_a_new_field_of_the_api_is_a_field_of_the_files() -> None:
    for fields, live in ((TENANT, r.Tenant), (MODEL, r.Model), (VERSION, r.Version), (DEPLOYMENT, r.Deployment)):
        assert set(fields) <= set(live.__struct_fields__), "what can be set must be shown, or no plan sees it"
    assert {"replicas", "threads", "memory_mb"} <= set(DEPLOYMENT)


# ------------------------------------------------------------------------------------------------ plans
def registered(*versions: Key) -> State:
    found: State = {MODEL_KEY: {"timeout_s": 30.0}, Key("tenant", "", "default"): {}}
    for key in versions:
        found |= {key: {"digest": key.name}, Key("state", CHURN, key.name): {"state": "validated"}}
    return found


def serving(weights: dict[str, float], *deployed: Key, **more: Any) -> Live:
    fields = {key: {"replicas": 1, "threads": 1, "traffic_on_ready": None} for key in deployed}
    return Live({**registered(V1, V2), **fields, TRAFFIC: {"weights": weights}}, {CHURN: weights}, **more)


def names(desired: Desired, live: Live, prune: bool = False) -> list[str]:
    found = plan(desired, live, prune)
    assert found.faults == []
    return [f"{step.action} {step.key.kind} {step.key.name}".strip() for step in found.steps]


ALL = frozenset({("deployment", CHURN), ("alias", CHURN), ("override", CHURN)})


@pytest.mark.parametrize(
    ("wanted", "live", "prune", "steps"),
    [
        # A swap: the new one is there before the traffic moves, the old one goes after.
        (
            {D2: {"replicas": 1}, TRAFFIC: {"weights": {"2": 100.0}}},
            serving({"1": 100.0}, D1),
            True,
            ["create deployment 2", "change traffic", "remove deployment 1"],
        ),
        # Scaled to none: after its traffic has gone.
        (
            {D1: {"replicas": 0}, D2: {"replicas": 1}, TRAFFIC: {"weights": {"2": 100.0}}},
            serving({"1": 100.0}, D1, D2),
            False,
            ["change traffic", "change deployment 1"],
        ),
        # Retired: after nothing needs it.
        (
            {Key("state", CHURN, "1"): {"state": "retired"}, D2: {"replicas": 1}, TRAFFIC: {"weights": {"2": 100.0}}},
            serving({"1": 100.0}, D1, D2),
            True,
            ["change traffic", "remove deployment 1", "change state 1"],
        ),
        # What a rollback would go back to is not pruned.
        (
            {D2: {"replicas": 1}, TRAFFIC: {"weights": {"2": 100.0}}},
            serving({"2": 100.0}, D1, D2, kept=frozenset({D1})),
            True,
            [],
        ),
        # What nobody takes over from is not pruned.
        ({D2: {"replicas": 1}}, serving({"1": 100.0}, D1, D2), True, []),
        # Fields that are left out stay.
        ({D1: {"threads": 1}}, serving({"1": 100.0}, D1), False, []),
        # An alias moves once its version is there.
        (
            {D2: {"replicas": 1}, Key("alias", CHURN, "a"): {"version": 2}},
            serving({"1": 100.0}, D1),
            False,
            ["create deployment 2", "create alias a"],
        ),
    ],
)
def test_steps_and_their_order(wanted: State, live: Live, prune: bool, steps: list[str]) -> None:
    assert names(Desired(wanted, ALL), live, prune) == steps


def traffic(weights: dict[str, float], **more: Any) -> r.Traffic:
    return r.Traffic("churn", "default", 1 if weights else 0, weights, {}, more.get("previous"))


def deployment(version: int, waits: float | None) -> r.Deployment:
    return r.Deployment("churn", "default", version, "starting", 1, 0, 1, "", [], 0.0, "now", traffic_on_ready=waits)


@pytest.mark.parametrize(
    ("now", "waiting", "wanted", "steps"),
    [
        ({}, [(1, 100.0)], {"1": 100.0}, []),  # a first version on its way to all
        ({"1": 100.0}, [(1, None), (2, 10.0)], {"1": 90.0, "2": 10.0}, []),  # a share on its way
        ({"1": 100.0}, [(1, None), (2, 10.0)], {"1": 100.0}, ["change deployment 2"]),  # one that the files do not want
        ({"1": 100.0}, [(1, None), (2, None)], {"1": 90.0, "2": 10.0}, ["change traffic"]),
        ({}, [(1, 100.0), (2, 0.0)], {"1": 90.0, "2": 10.0}, ["create traffic"]),
    ],
)
def test_shares_that_are_on_their_way_are_no_drift(
    now: dict[str, float], waiting: list[tuple[int, float | None]], wanted: dict[str, float], steps: list[str]
) -> None:
    live = state.live([], [], [], [deployment(*one) for one in waiting], [traffic(now)])
    live.state.update(registered(V1, V2))
    assert names(Desired({TRAFFIC: {"weights": wanted}}), live) == steps


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({V1: {"digest": "other"}}, "a version never changes"),
        ({Key("version", CHURN, "3"): {"engine": "onnx"}}, "do not say of what"),
        ({Key("deployment", CHURN, "7"): {}}, "version default/churn@7 is neither in the files nor registered"),
        ({TRAFFIC: {"weights": {"9": 100.0}}}, "@9 is neither"),
        ({Key("model", "default/other"): {}}, "it does not exist, and the files give no version of it"),
        ({Key("state", CHURN, "1"): {"state": "retired"}, D1: {"replicas": 1}}, "the files retire default/churn@1"),
        (
            {
                Key("version", CHURN, "3"): {"digest": "3", "lineage.parent": "churn@4"},
                Key("version", CHURN, "4"): {"digest": "4"},
            },
            "it waits for itself",
        ),
    ],
)
def test_what_cannot_be_is_a_fault_and_not_a_step_that_fails(wanted: State, said: str) -> None:
    found = plan(Desired(wanted), serving({"1": 100.0}, D1))
    assert any(said in fault.message for fault in found.faults), found.faults


def test_a_number_that_is_behind_is_a_fault_and_what_is_retired_stays_so() -> None:
    live = Live({V2: {"digest": "2"}, Key("state", CHURN, "2"): {"state": "retired"}, MODEL_KEY: {}}, {})
    wanted: State = {V1: {"digest": "1"}, Key("state", CHURN, "2"): {"state": "approved"}}
    assert sorted(fault.message for fault in plan(Desired(wanted), live).faults) == [
        "it is retired, for good",
        "its number is behind default/churn@2: numbers are given once, and upwards",
    ]


def test_a_pipeline_comes_after_what_it_runs_and_the_grant_of_it() -> None:
    part, pipe = Key("version", "vision/resnet", "1"), Key("version", "default/photo", "1")
    grant = Key("grant", "vision/resnet", "default")
    wanted: State = {pipe: {"digest": "p"}, part: {"digest": "r"}, grant: {}, Key("tenant", "", "vision"): {}}
    found = plan(Desired(wanted, parts={pipe: frozenset({part})}), Live({}, {}))
    assert [step.key for step in found.steps] == [Key("tenant", "", "vision"), part, grant, pipe]


def change(number: int, action: str, actor: str, reason: str | None, entity: str = "churn", **after: Any) -> r.Change:
    return r.Change(number, "now", actor, action, "default", entity, None, after or None, reason, None, "")


@pytest.mark.parametrize(
    ("rows", "drift"),
    [
        ([change(9, "traffic.set", "hr_1", None)], 9),
        ([change(9, "traffic.rollback", "hr_1", "errors"), change(8, "traffic.set", "hr_1", f"{MARK}: v2")], 9),
        ([change(9, "traffic.set", "hr_1", MARK), change(8, "traffic.set", "hr_1", None)], None),
        ([change(9, "traffic.set", "platform", "churn@1 is ready"), change(8, "traffic.set", "hr_1", "x")], None),
        ([change(9, "model.update", "hr_1", None), change(8, "traffic.set", "hr_1", MARK)], None),
        ([change(9, "deployment.scale", "hr_1", None, "churn@1")], None),
        ([], None),
    ],
)
def test_drift_is_what_a_hand_has_changed_last(rows: list[r.Change], drift: int | None) -> None:
    (step,) = plan(Desired({TRAFFIC: {"weights": {"2": 100.0}}}), serving({"1": 100.0}, D1, D2)).steps
    blame([step], rows)
    assert (step.drift.change if step.drift else None) == drift


def test_an_override_is_told_apart_by_its_tenant() -> None:
    key = Key("override", CHURN, "risk")
    (step,) = plan(Desired({key: {"version": 1}}), serving({"1": 100.0}, D1)).steps
    blame([step], [change(9, "traffic.unpin", "hr_1", None, tenant="growth")])
    assert step.drift is None
    blame([step], [change(9, "traffic.unpin", "hr_1", None, tenant="risk")])
    assert step.drift is not None
