"""The registry over its API: states, approval, aliases, lineage, signature tests, differences, search, deletion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import Conflict
from tests import models
from tests.integration.control import Control, control


@pytest.fixture
def served(tmp_path: Path, url: str) -> Iterator[Control]:
    with control(tmp_path, url) as one:
        yield one


def ready(served: Control, *versions: int, model: str = "echo") -> None:
    for version in versions:
        served.fleet.ready(f"default/{model}", version)


def push(served: Control, add: float = 0.0, model: str = "echo", **body: Any) -> Any:
    artifact = models.echo_onnx(add)
    given = {"digest": served.put(artifact.content), "file_name": artifact.file_name, **body}
    return served.do("POST", f"/models/{model}/versions", given)["result"]


def tensor(name: str, *values: float) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [len(values), 1], "data": list(values)}


def golden(*expected: float, **more: Any) -> dict[str, Any]:
    """x = 1, 2, ... -> y."""
    given = tensor("x", *range(1, len(expected) + 1))
    return {"cases": [{"name": "first", "inputs": [given], "outputs": [tensor("y", *expected)]}], **more}


# ------------------------------------------------------------------------------------------------ states
def test_a_version_goes_from_validated_to_approved_to_retired_to_nothing(served: Control) -> None:
    assert push(served)["state"] == "validated"
    approved = served.do("POST", "/models/echo/versions/1/approve", {"reason": "auc is up"})
    assert approved["result"]["state"] == "approved"
    again = served.do("POST", "/models/echo/versions/1/approve")
    assert again["change"]["id"] == approved["change"]["id"]
    assert served.do("POST", "/models/echo/versions/1/retire")["result"]["state"] == "retired"
    for verb in ("approve", "validate"):
        problem = served.refused(
            "POST", f"/models/echo/versions/1/{verb}", {"golden": golden(1)} if verb[0] == "v" else None
        )
        assert problem.status == 409 and "retired" in problem.detail and "push the model again" in problem.detail
    assert served.refused("POST", "/deployments", {"model": "echo@1"}).status == 409
    assert served.do("GET", "/models/echo/versions?state=retired")["items"][0]["version"] == 1
    assert served.do("GET", "/models/echo/versions?state=approved")["items"] == []
    assert push(served)["version"] == 2  # the same artifact: not the retired one again
    gone = served.do("DELETE", "/models/echo/versions/1")["result"]
    assert (gone["version"], gone["state"]) == (1, "retired")
    assert served.refused("GET", "/models/echo/versions/1").status == 404
    first = served.do("GET", "/changes")["items"]
    assert [c["action"] for c in first[:4]] == [
        "version.delete",
        "version.register",
        "version.retire",
        "version.approve",
    ]
    assert first[3]["reason"] == "auc is up"
    assert served.do("GET", "/audit/verify")["ok"]


def test_a_number_is_never_given_twice(served: Control) -> None:
    for number in (1, 2):
        assert push(served, float(number))["version"] == number
        served.do("POST", f"/models/echo/versions/{number}/retire")
    served.do("DELETE", "/models/echo/versions/2")
    served.do("DELETE", "/models/echo/versions/1")
    assert push(served, 3.0)["version"] == 3


def test_a_failed_transaction_changes_no_state(served: Control) -> None:
    push(served)

    def fails(c: Any) -> None:
        from headrace.registry import lifecycle

        lifecycle.move(c, lifecycle.find(c, 1, 1), "approved", "hr_a")
        raise Conflict("killed before the commit")

    with pytest.raises(Conflict):
        served.run(served.store.run(fails))
    assert served.do("GET", "/models/echo/versions/1")["state"] == "validated"


@pytest.mark.parametrize("rule", ["required", "four-eyes"])
def test_only_what_is_approved_takes_traffic_where_the_tenant_wants_it(served: Control, rule: str) -> None:
    for add in (0.0, 1.0, 2.0):
        push(served, add)
    ready(served, 1, 2, 3)
    served.do("PUT", "/models/echo/traffic", {"weights": {"1": 100}})
    served.do("PATCH", "/tenants/default", {"approval": rule})
    assert served.do("GET", "/tenants/default")["approval"] == rule
    problem = served.refused("PUT", "/models/echo/traffic", {"weights": {"1": 90, "2": 10}})
    assert (problem.status, problem.field) == (409, "weights")
    assert problem.hint is not None and "headrace models approve echo@2" in problem.hint
    for method, path, body in (
        ("PUT", "/models/echo/traffic/overrides/default", {"version": 2}),
        ("PUT", "/models/echo/aliases/champion", {"version": 2}),
        ("POST", "/deployments", {"model": "echo@2", "traffic_percent": 5}),
    ):
        assert "approve echo@2" in str(served.refused(method, path, body).hint)
    served.do("POST", "/deployments", {"model": "echo@2"})  # runs, and takes none
    other = served.key_of("operator")
    served.do("POST", "/models/echo/versions/2/approve", key=other)
    served.do("PUT", "/models/echo/traffic", {"weights": {"1": 90, "2": 10}})  # 1 keeps what it has
    served.do("PUT", "/models/echo/traffic", {"weights": {"2": 100}})
    # What had traffic when the rule came is come back to by one action.
    assert served.do("POST", "/models/echo/rollback")["result"]["weights"] == {"1": 100.0}


def test_the_first_deployment_of_a_model_takes_all_and_so_must_be_approved(served: Control) -> None:
    served.do("PATCH", "/tenants/default", {"approval": "required"})
    push(served)
    problem = served.refused("POST", "/deployments", {"model": "echo"})
    assert problem.status == 409 and "approve echo@1" in str(problem.hint)
    served.do("POST", "/deployments", {"model": "echo", "traffic_percent": 0})
    served.do("POST", "/models/echo/versions/1/approve")
    served.do("POST", "/deployments", {"model": "echo"})


def test_four_eyes_are_those_of_two(served: Control) -> None:
    served.do("POST", "/tenants", {"name": "risk", "approval": "four-eyes"})
    one, other = served.key_of("operator", "risk"), served.key_of("operator", "risk")
    artifact = models.echo_onnx()
    digest = served.put(artifact.content)
    served.do("POST", "/models/m/versions", {"digest": digest, "file_name": "a.onnx"}, key=one)
    problem = served.refused("POST", "/models/m/versions/1/approve", key=one)
    assert problem.status == 403 and "wants another to approve it" in problem.detail
    assert served.do("GET", "/models/m/versions/1", key=one)["state"] == "validated"
    assert served.do("POST", "/models/m/versions/1/approve", key=other)["result"]["state"] == "approved"


# ------------------------------------------------------------------------------------------------ aliases
def test_an_alias_is_a_version_wherever_one_is_named(served: Control) -> None:
    for add in (0.0, 1.0):
        push(served, add)
    set_to = served.do("PUT", "/models/echo/aliases/champion", {"version": 1})
    assert set_to["result"]["aliases"] == {"champion": 1}
    assert set_to["change"]["undo"] == "headrace models alias echo champion --remove"
    assert served.do("GET", "/models/echo/versions/champion")["version"] == 1
    assert served.do("GET", "/models/echo/versions/1")["aliases"] == ["champion"]
    deployed = served.do("POST", "/deployments", {"model": "echo@champion"})["result"]
    assert deployed["version"] == 1
    assert served.do("GET", "/deployments/echo@champion")["version"] == 1
    assert served.do("PATCH", "/deployments/echo@champion", {"replicas": 2})["result"]["replicas"] == 2
    ready(served, 1, 2)
    served.do("PUT", "/models/echo/aliases/challenger", {"version": 2})
    split = {"weights": {"champion": 90, "challenger": 10}}
    assert served.do("PUT", "/models/echo/traffic", split)["result"]["weights"] == {"1": 90.0, "2": 10.0}
    pin = served.do("PUT", "/models/echo/traffic/overrides/default", {"version": "challenger"})
    assert pin["result"]["overrides"] == {"default": 2}
    route = served.publisher.state.models[1].aliases
    assert route == {"champion": 1, "challenger": 2}
    moved = served.do("PUT", "/models/echo/aliases/champion", {"version": "challenger"})
    assert moved["result"]["aliases"] == {"challenger": 2, "champion": 2}
    assert moved["change"]["undo"] == "headrace models alias echo champion 1"
    change = served.do("GET", "/changes?model=echo")["items"][0]
    assert (change["action"], change["entity"]) == ("model.alias", "echo@champion")
    assert (change["before"], change["after"]) == ({"version": 1}, {"version": 2})
    same = served.do("PUT", "/models/echo/aliases/champion", {"version": 2})
    assert same["change"]["id"] == moved["change"]["id"]
    assert served.do("DELETE", "/models/echo/aliases/champion")["result"]["aliases"] == {"challenger": 2}
    assert served.refused("DELETE", "/models/echo/aliases/champion").status == 404
    assert served.refused("DELETE", "/deployments/echo@challenger?force=true").field == "version"
    assert served.do("DELETE", "/deployments/echo@1?force=true")["result"]["version"] == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("PUT", "/models/echo/aliases/4", {"version": 1}, 400, "alias"),
        ("PUT", "/models/echo/aliases/-x", {"version": 1}, 400, "alias"),
        ("PUT", "/models/echo/aliases/a", {"version": 9}, 404, "version"),
        ("PUT", "/models/echo/aliases/a", {"version": "b"}, 404, "version"),
        ("PUT", "/models/echo/aliases/a", {}, 400, "version"),
        ("PUT", "/models/echo/traffic", {"weights": {"champoin": 100}}, 404, "version"),
        ("PUT", "/models/echo/traffic", {"weights": {"champion": 50, "1": 50}}, 400, "weights"),
        ("POST", "/deployments", {"model": "echo@nobody"}, 404, "version"),
        ("GET", "/models/echo/versions/nobody", None, 404, "version"),
        ("GET", "/models/echo/diff?old=1&new=nobody", None, 404, "version"),
        ("GET", "/models/echo/diff?old=1", None, 400, None),
    ],
)
def test_versions_that_are_none(
    served: Control, method: str, path: str, body: object, status: int, field: str | None
) -> None:
    push(served)
    served.do("PUT", "/models/echo/aliases/champion", {"version": 1})
    problem = served.refused(method, path, body)
    assert (problem.status, problem.field) == (status, field), problem
    if field == "version" and "champoin" in str(body):
        assert problem.hint == "did you mean champion?"


# ------------------------------------------------------------------------------------------------ deletion
def test_what_is_referred_to_is_neither_retired_nor_deleted(served: Control) -> None:
    for add in (0.0, 1.0, 2.0):
        push(served, add)
    push(served, 5.0, "other", lineage={"parent": "echo@3"})
    ready(served, 1, 2)
    served.do("POST", "/deployments", {"model": "echo@1"})
    says = served.refused("POST", "/models/echo/versions/1/retire")
    assert (says.status, says.hint) == (409, "headrace undeploy echo@1") and "is deployed" in says.detail
    served.do("PUT", "/models/echo/aliases/champion", {"version": 3})
    says = served.refused("POST", "/models/echo/versions/3/retire")
    assert "the alias 'champion' points at" in says.detail
    served.do("PUT", "/models/echo/aliases/champion", {"version": 2})
    served.do("PUT", "/models/echo/traffic/overrides/default", {"version": 2})
    assert "tenant 'default' pinned to it" in served.refused("POST", "/models/echo/versions/2/retire").detail
    served.do("DELETE", "/models/echo/traffic/overrides/default")
    served.do("DELETE", "/models/echo/aliases/champion")

    says = served.refused("DELETE", "/models/echo/versions/3")
    assert "only a retired version is deleted" in says.detail and says.hint == "headrace models retire echo@3"
    served.do("PUT", "/models/echo/traffic", {"weights": {"1": 100}})
    served.do("PUT", "/models/echo/traffic", {"weights": {"2": 100}})
    served.do("DELETE", "/deployments/echo@1?force=true")
    for version in (1, 2, 3):
        served.do("POST", f"/models/echo/versions/{version}/retire")
    reasons = {1: "a rollback would put back", 2: "in the traffic policy in force", 3: "the parent of other@1"}
    for version, reason in reasons.items():
        problem = served.refused("DELETE", f"/models/echo/versions/{version}")
        assert problem.status == 409 and reason in problem.detail
    served.do("POST", "/models/other/versions/1/retire")
    served.do("DELETE", "/models/other/versions/1")
    served.do("DELETE", "/models/echo/versions/3")


# ------------------------------------------------------------------------------------------------ lineage
def test_lineage_is_kept_shown_and_found(served: Control) -> None:
    push(served)
    said = {
        "training_set": "s3://sets/churn/2026-01",
        "code": "9f3c2ab",
        "parent": "1",
        "features": ["tenure_days@2", "balance@11"],
        "metadata": {"notebook": "Überblick.ipynb"},
    }
    made = push(served, 1.0, lineage=said, tags={"team": "Fraud"}, description="Gradient boosting")
    assert made["lineage"] == {**said, "parent": "echo@1"}
    assert served.do("GET", "/models/echo/versions/1")["lineage"]["parent"] is None
    push(served, 2.0, "base")
    served.do("PATCH", "/models/base", {"description": "Naïve fraud rules 100%"})
    for query, names in {
        "fraud": ["base", "echo"],
        "FRAUD boost": ["echo"],
        "fraud boosting onnx 9f3c2ab": ["echo"],
        "fraud rules": ["base"],
        "naive": ["base"],
        "uberblick": ["echo"],
        "tenure_days@2": ["echo"],
        "tenure%": [],
        "100%": ["base"],
        "team=fraud": ["echo"],
        "xgboost": [],
        "": ["base", "echo"],
    }.items():
        found = served.do("GET", "/models", params={"q": query})["items"]
        assert [m["name"] for m in found] == names, query
    served.do("PATCH", "/models/base", {"description": "rules"})
    assert served.do("GET", "/models?q=naive")["items"] == []
    served.do("POST", "/models/echo/versions/2/retire")
    served.do("DELETE", "/models/echo/versions/2")
    assert served.do("GET", "/models?q=boosting")["items"] == []


@pytest.mark.parametrize(
    ("lineage", "status", "field"),
    [
        ({"parent": "9"}, 404, "lineage.parent"),
        ({"parent": "nobody@1"}, 404, "lineage.parent"),
        ({"parent": "a@@1"}, 400, "lineage.parent"),
        ({"parent": ""}, 400, "lineage.parent"),
        ({"features": ["tenure"]}, 400, "lineage.features"),
        ({"features": ["tenure@0"]}, 400, "lineage.features"),
        ({"features": ["a@1"] * 101}, 400, "lineage.features"),
        ({"metadata": {"": "x"}}, 400, "lineage.metadata"),
        ({"code": "x" * 1001}, 400, "lineage.code"),
        ({"colour": "red"}, 400, "lineage.colour"),
    ],
)
def test_lineage_that_cannot_be(served: Control, lineage: object, status: int, field: str) -> None:
    digest = served.put(models.echo_onnx().content)
    body = {"digest": digest, "file_name": "a.onnx", "lineage": lineage}
    problem = served.refused("POST", "/models/echo/versions", body)
    assert (problem.status, problem.field) == (status, field), problem
    assert served.do("GET", "/models")["items"] == []


# ------------------------------------------------------------------------------------------------ signature tests
def test_signature_tests_pass_and_their_result_is_kept(served: Control) -> None:
    made = push(served, 1.0, golden=golden(2.0, 3.0))
    assert (made["state"], made["tests"]) == ("validated", [{"case": "first", "faults": []}])
    assert push(served, 1.0, golden=golden(2.0, 3.0))["version"] == 1
    assert push(served, 1.0)["version"] == 1
    assert push(served, 1.0, golden=golden(2.0))["version"] == 2  # other tests: another version


def test_a_version_that_fails_its_tests_takes_no_traffic_until_it_passes(served: Control) -> None:
    made = push(served, 1.0, golden=golden(2.0, 3.5, 9.0))
    fault = made["tests"][0]["faults"][0]
    assert made["state"] == "registered"
    assert (fault["output"], fault["at"], fault["expected"], fault["got"]) == ("y", [1, 0], 3.5, 3.0)
    assert fault["message"] == "output 'y' at [1, 0]: expected 3.5, got 3.0, and 1 more"
    ready(served, 1)
    problem = served.refused("PUT", "/models/echo/traffic", {"weights": {"1": 100}})
    assert problem.status == 409 and "1 of 1 signature tests failed: first: output 'y'" in problem.detail
    assert served.refused("POST", "/deployments", {"model": "echo@1"}).status == 409
    problem = served.refused("POST", "/models/echo/versions/1/approve")
    assert problem.status == 409 and "its signature tests failed" in problem.detail
    again = served.do("POST", "/models/echo/versions/1/validate", {})["result"]
    assert again["state"] == "registered"
    passes = served.do("POST", "/models/echo/versions/1/validate", {"golden": golden(2.0, 3.0)})
    assert passes["result"]["state"] == "validated"
    served.do("PUT", "/models/echo/traffic", {"weights": {"1": 100}})
    served.do("POST", "/models/echo/versions/1/approve")
    problem = served.refused("POST", "/models/echo/versions/1/validate", {"golden": golden(7.0)})
    assert problem.status == 409 and "expected 7.0, got 2.0" in problem.detail
    assert served.do("GET", "/models/echo/versions/1")["state"] == "approved"
    assert served.do("POST", "/models/echo/versions/1/validate", {})["result"]["state"] == "approved"


@pytest.mark.parametrize(
    ("expected", "tolerance", "passes"),
    [(1.00001, 1e-4, True), (1.001, 1e-4, False), (1.0, 0.0, True), (1.5, 0.5, True), (1.7, 0.4, False)],
)
def test_the_tolerance_is_held(served: Control, expected: float, tolerance: float, passes: bool) -> None:
    made = push(served, golden=golden(expected, tolerance=tolerance))
    assert (made["state"] == "validated") == passes


def case(inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    return {"cases": [{"inputs": inputs, "outputs": outputs}]}


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        (case([tensor("z", 1.0)], [tensor("y", 1.0)]), "unknown input 'z', the model takes 'x'"),
        (case([], [tensor("y", 1.0)]), "'x'"),
        (case([tensor("x", 1.0)], [tensor("z", 1.0)]), "there is no output 'z', the model gives y"),
        (case([tensor("x", 1.0)], [tensor("y", 1.0, 2.0)]), "has the shape [1, 1], expected [2, 1]"),
        (case([tensor("x", 1.0)], [{**tensor("y", 1.0), "datatype": "FP64"}]), "is FP32, expected FP64"),
        (case([tensor("x", 1.0)], [{**tensor("y", 1.0), "data": ["a"]}]), "item 0 is a string, expected FP32"),
    ],
)
def test_a_case_that_cannot_be_run_says_why(served: Control, tests: object, says: str) -> None:
    made = push(served, golden=tests)
    assert made["state"] == "registered" and made["tests"][0]["case"] == "case 1"
    assert says in made["tests"][0]["faults"][0]["message"]


def test_texts_and_whole_numbers_must_be_equal(served: Control) -> None:
    artifact = models.identity_onnx("BYTES", "INT64")

    def given(text: str, number: int, suffix: str = "") -> list[dict[str, Any]]:
        return [
            {"name": f"BYTES{suffix}", "datatype": "BYTES", "shape": [1, 2], "data": [text, "é"]},
            {"name": f"INT64{suffix}", "datatype": "INT64", "shape": [1, 2], "data": [[number, 2]]},
        ]

    tests = {"cases": [{"inputs": given("a", 1), "outputs": given(*out, "_out")} for out in (("a", 1), ("b", 3))]}  # type: ignore[arg-type]
    body = {"digest": served.put(artifact.content), "file_name": "a.onnx", "golden": tests}
    made = served.do("POST", "/models/same/versions", body)["result"]
    assert [len(result["faults"]) for result in made["tests"]] == [0, 2]
    assert [(f["expected"], f["got"]) for f in made["tests"][1]["faults"]] == [("b", "a"), (3, 1)]


def test_a_model_that_dies_in_a_test_is_refused_and_leaves_nothing(served: Control) -> None:
    artifact = models.exits_on(13.0)
    body = {
        "digest": served.put(artifact.content),
        "file_name": "model.py",
        "golden": case([tensor("x", 13.0)], [tensor("y", 13.0)]),
    }
    problem = served.refused("POST", "/models/dies/versions", body)
    assert problem.status == 422 and "crashed" in problem.detail
    assert served.do("GET", "/models")["items"] == []


@pytest.mark.parametrize(
    ("tests", "field"),
    [
        ({"cases": []}, "golden.cases"),
        ({"cases": [golden(1)["cases"][0]] * 2}, "golden.cases"),
        (case([tensor("x", 1.0)], []), "golden.cases[0].outputs"),
        (golden(1, tolerance=-1), "golden.tolerance"),
        ({"cases": [{**golden(1)["cases"][0], "tolerance": -1}]}, "golden.cases[0].tolerance"),
        ({}, "golden.cases"),
    ],
)
def test_tests_that_test_nothing(served: Control, tests: object, field: str) -> None:
    digest = served.put(models.echo_onnx().content)
    body = {"digest": digest, "file_name": "a.onnx", "golden": tests}
    problem = served.refused("POST", "/models/echo/versions", body)
    assert problem.status == 400 and (problem.field == field or field == "golden.cases"), problem
    push(served)
    assert served.refused("POST", "/models/echo/versions/1/validate", {}).field == "golden"


# ------------------------------------------------------------------------------------------------ differences
def test_differences(served: Control) -> None:
    push(served, metrics={"auc": 0.9, "loss": 1.0}, tags={"a": "1"})
    push(
        served, 1.0, metrics={"auc": 0.95, "f1": 0.5}, tags={"a": "2"}, lineage={"parent": "1", "metadata": {"k": "v"}}
    )
    served.do("PUT", "/models/echo/aliases/new", {"version": 2})
    found = served.do("GET", "/models/echo/diff?old=1&new=new")
    assert (found["old"], found["new"]) == (1, 2)
    rows = {row["field"]: (row["old"], row["new"], row["change"]) for row in found["differences"]}
    assert rows["metrics.auc"] == (0.9, 0.95, pytest.approx(0.05))
    assert rows["metrics.loss"] == (1.0, None, None) and rows["metrics.f1"] == (None, 0.5, None)
    assert rows["tags.a"] == ("1", "2", None)
    assert rows["lineage.parent"] == (None, "echo@1", None) and rows["lineage.metadata.k"] == (None, "v", None)
    assert rows["size_bytes"][2] > 0 and rows["digest"][0] != rows["digest"][1]
    assert not any(field.startswith(("signature", "options", "engine")) for field in rows)
    assert served.do("GET", "/models/echo/diff?old=2&new=2")["differences"] == []
    served.push("other", models.classifier_onnx())
    served.push("other", models.classifier_xgboost())
    rows = {row["field"]: row for row in served.do("GET", "/models/other/diff?old=1&new=2")["differences"]}
    assert (rows["engine"]["old"], rows["engine"]["new"]) == ("onnx", "xgboost")
    assert rows["signature.inputs.x"]["old"] == "FP32 [-1, 30]" and rows["signature.inputs.x"]["new"] is None
    assert (rows["options.nan"]["old"], rows["options.nan"]["new"]) == ("reject", "allow")
