"""The control-plane API, over its real application and store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import models
from tests.integration.control import ARTIFACT_MAX, Control, control


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[], str]) -> Iterator[Control]:
    """A control plane with model ``echo`` at versions 1, 2 and 3, of which 1 and 2 are ready and 1 serves."""
    with control(tmp_path_factory.mktemp("control"), new_database()) as one:
        for add in (0.0, 1.0, 2.0):
            one.push("echo", models.echo_onnx(add))
        for version in (1, 2):
            one.do("POST", "/deployments", {"model": f"echo@{version}"})
            one.fleet.ready("default/echo", version)
        one.do("PUT", "/models/echo/traffic", {"weights": {"1": 100}})
        one.do("POST", "/tenants", {"name": "risk"})
        yield one


def test_a_key_is_needed_before_anything_is_read(served: Control) -> None:
    problem = served.refused("POST", "/tenants", {"not": "valid"}, key=None)
    assert (problem.status, problem.code) == (401, "unauthenticated")
    assert served.refused("GET", "/models", key="hr_0_wrong").status == 401
    assert served.refused("GET", "/models", headers={"authorization": "Basic eDp5"}, key=None).status == 401


def test_health_and_metrics_and_the_document_are_open(served: Control) -> None:
    assert served.call("GET", "/healthz", key=None).json() == {"live": True}
    assert served.call("GET", "/metrics", key=None).text.startswith("# HELP")
    assert served.call("GET", "/openapi.json", key=None).json()["openapi"].startswith("3.")


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/models/echo/versions", "viewer"),
        ("PATCH", "/models/echo", "viewer"),
        ("PUT", f"/artifacts/{'0' * 64}", "viewer"),
        ("POST", "/deployments", "developer"),
        ("PUT", "/models/echo/traffic", "developer"),
        ("POST", "/models/echo/rollback", "developer"),
        ("PUT", "/models/echo/grants/risk", "developer"),
        ("POST", "/tenants", "operator"),
        ("GET", "/keys", "operator"),
    ],
)
def test_a_role_below_is_refused(served: Control, method: str, path: str, role: str) -> None:
    bodies = {
        "/models/echo/versions": {"digest": "0" * 64, "file_name": "a.onnx"},
        "/models/echo": {},
        "/deployments": {"model": "echo"},
        "/models/echo/traffic": {"weights": {"1": 100}},
        "/tenants": {"name": "other"},
    }
    assert served.refused(method, path, bodies.get(path), key=served.key_of(role)).code == "forbidden"


def test_a_version_says_what_was_read_out_of_the_model(served: Control) -> None:
    version = served.do("GET", "/models/echo/versions/1")
    artifact = models.echo_onnx(0.0)
    assert (version["engine"], version["digest"], version["size_bytes"]) == (
        "onnx",
        artifact.digest,
        len(artifact.content),
    )
    assert version["signature"]["inputs"] and version["created_by"].startswith("hr_")


def test_pushing_the_latest_again_changes_nothing(served: Control) -> None:
    before = served.do("GET", "/changes")["items"][0]["id"]
    again = served.push("echo", models.echo_onnx(2.0))
    assert again["result"]["version"] == 3
    assert served.do("GET", "/changes")["items"][0]["id"] == before
    made = next(c for c in served.do("GET", "/changes?model=echo")["items"] if c["entity"] == "echo@3")
    assert again["change"]["id"] == made["id"]


def test_traffic_is_split_and_rolled_back_and_forth(served: Control) -> None:
    split = served.do("PUT", "/models/echo/traffic", {"weights": {"1": 90, "2": 10}, "reason": "canary"})
    assert split["result"]["weights"] == {"1": 90.0, "2": 10.0}
    assert split["result"]["previous"] == {"1": 100.0}
    assert split["change"]["effective"] and split["change"]["undo"] == "headrace rollback echo"
    back = served.do("POST", "/models/echo/rollback")["result"]
    assert back["weights"] == {"1": 100.0} and back["previous"] == {"1": 90.0, "2": 10.0}
    forth = served.do("POST", "/models/echo/rollback", {"reason": "it was not the model"})["result"]
    assert forth["weights"] == {"1": 90.0, "2": 10.0}
    newest = served.do("GET", "/models/echo/traffic/history")["items"][:3]
    assert [c["action"] for c in newest] == ["traffic.rollback", "traffic.rollback", "traffic.set"]
    assert newest[2]["reason"] == "canary" and newest[2]["after"] == {"weights": {"1": 90.0, "2": 10.0}}
    served.do("PUT", "/models/echo/traffic", {"weights": {"1": 100}})


@pytest.mark.parametrize(
    ("weights", "status", "field"),
    [
        ({"1": 50, "2": 49}, 400, "weights"),
        ({"1": -1, "2": 101}, 400, "weights.1"),
        ({"1": 99.999, "2": 0.001}, 400, "weights.2"),
        ({"one": 100}, 404, "version"),
        ({"9" * 30: 100}, 400, "weights"),
        ({"77": 100}, 404, "version"),
        ({"3": 100}, 409, "weights"),
        ({}, 400, "weights"),
        ("all", 400, "weights"),
    ],
)
def test_weights_that_cannot_be(served: Control, weights: object, status: int, field: str) -> None:
    problem = served.refused("PUT", "/models/echo/traffic", {"weights": weights})
    assert (problem.status, problem.field) == (status, field)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/keys", {"tenant": "risk", "role": "boss"}, "role: 'boss', expected admin, developer, operator, viewer"),
        (
            "/models/echo/versions",
            {"digest": "0" * 64, "file_name": "a", "options": {"nan": "maybe"}},
            "options.nan: 'maybe', expected allow, reject",
        ),
    ],
)
def test_a_word_that_is_none_of_those_expected(served: Control, path: str, body: object, says: str) -> None:
    assert served.refused("POST", path, body).detail == says


def test_names_that_are_nearly_right_are_suggested(served: Control) -> None:
    assert served.refused("GET", "/models/ecko").hint == "did you mean echo?"
    assert served.refused("GET", "/models/quite-other").hint == "headrace models push quite-other FILE"
    assert served.refused("GET", "/tenants/rsik").hint == "did you mean risk?"


def test_if_match_holds_a_policy_to_its_epoch(served: Control) -> None:
    tag = served.call("GET", "/models/echo/traffic").headers["etag"]
    body = {"weights": {"1": 80, "2": 20}}
    served.do("PUT", "/models/echo/traffic", body, headers={"if-match": tag})
    assert served.refused("PUT", "/models/echo/traffic", body, headers={"if-match": tag}).status == 412
    assert served.refused("PUT", "/models/echo/traffic", body, headers={"if-match": "new"}).field == "if-match"


def test_a_pin_is_set_and_taken_away(served: Control) -> None:
    assert served.do("PUT", "/models/echo/traffic/overrides/risk", {"version": 2})["result"]["overrides"] == {"risk": 2}
    assert served.do("DELETE", "/models/echo/traffic/overrides/risk")["result"]["overrides"] == {}
    assert served.refused("DELETE", "/models/echo/traffic/overrides/risk").status == 404
    assert served.refused("PUT", "/models/echo/traffic/overrides/risk", {"version": 3}).status == 409


def test_a_version_with_traffic_is_not_undeployed(served: Control) -> None:
    problem = served.refused("DELETE", "/deployments/echo@1")
    assert problem.status == 409 and "of the traffic" in problem.detail and problem.hint is not None


def test_all_deployments_together_want_no_more_replicas_than_there_may_be(
    served: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.platform, "replicas_max", 4)
    for verb, path, body in (
        ("POST", "/deployments", {"model": "echo@3", "replicas": 5}),
        ("PATCH", "/deployments/echo@1", {"replicas": 200}),
    ):
        problem = served.refused(verb, path, body)
        assert (problem.status, problem.field) == (409, "replicas")
        assert "of at most 4 are wanted already" in problem.detail


def test_an_idempotency_key_does_a_thing_once(served: Control) -> None:
    headers = {"idempotency-key": "deploy-3"}
    first = served.do("POST", "/deployments", {"model": "echo@3"}, headers=headers)
    again = served.do("POST", "/deployments", {"model": "echo@3"}, headers=headers)
    assert first["change"]["id"] == again["change"]["id"]
    other = served.refused("POST", "/deployments", {"model": "echo@3", "replicas": 2}, headers=headers)
    assert (other.status, other.field) == (409, "idempotency-key")
    for _ in range(2):
        gone = served.do("DELETE", "/deployments/echo@3", headers={"idempotency-key": "undeploy-3"})
        assert gone["result"]["state"] == "stopped"
    assert served.refused("DELETE", "/deployments/echo@3").status == 404


def test_a_new_version_is_registered_once_per_idempotency_key(served: Control) -> None:
    artifact = models.echo_onnx(5.0)
    body = {"digest": served.put(artifact.content), "file_name": artifact.file_name}
    once = [served.do("POST", "/models/once/versions", body, headers={"idempotency-key": "v"}) for _ in range(2)]
    assert once[0] == once[1] | {"change": once[0]["change"]} and once[0]["change"]["id"] == once[1]["change"]["id"]


def test_a_tenant_sees_its_own_and_a_grant_is_recorded(served: Control) -> None:
    theirs = served.key_of("operator", "risk")
    assert served.do("GET", "/models", key=theirs)["items"] == []
    assert served.refused("GET", "/models/echo", key=theirs).status == 404
    assert served.refused("GET", "/models/echo?tenant=default", key=theirs).status == 403
    assert served.do("PUT", "/models/echo/grants/risk")["result"]["grants"] == ["risk"]
    change = served.do("GET", "/changes")["items"][0]
    assert (change["action"], change["after"]) == ("model.grant", {"tenant": "risk"})
    served.do("PUT", "/models/echo/grants/risk")
    assert served.do("GET", "/changes")["items"][0]["id"] == change["id"]
    assert served.do("DELETE", "/models/echo/grants/risk")["result"]["grants"] == []
    assert served.refused("DELETE", "/models/echo/grants/risk").status == 404


def test_a_suspended_tenant_is_shut_out_and_nobody_suspends_himself(served: Control) -> None:
    served.do("POST", "/tenants", {"name": "gone"})
    key = served.key_of("viewer", "gone")
    assert served.call("GET", "/models", key=key).status_code == 200
    served.do("PATCH", "/tenants/gone", {"state": "suspended"})
    assert served.refused("GET", "/models", key=key).status == 403
    assert served.refused("PATCH", "/tenants/default", {"state": "suspended"}).status == 409


def test_a_revoked_key_opens_nothing(served: Control) -> None:
    made = served.do("POST", "/keys", {"role": "viewer", "label": "ci"})["result"]
    assert made["text"].startswith(made["key"]["id"] + "_")
    served.do("DELETE", f"/keys/{made['key']['id']}")
    assert served.refused("GET", "/models", key=made["text"]).status == 401
    assert made["text"] not in served.call("GET", "/keys").text + served.call("GET", "/changes").text
    assert served.refused("DELETE", "/keys/hr_nobody").status == 404
    assert served.refused("DELETE", f"/keys/{served.key.rsplit('_', 1)[0][:15]}").status in (404, 409)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/tenants", {"name": "no spaces"}, 400, "name"),
        ("POST", "/tenants", {"name": "default"}, 409, "name"),
        ("POST", "/tenants", {"name": "a", "quota": {"rate_per_s": 0}}, 400, "quota.rate_per_s"),
        ("POST", "/tenants", {"name": "a", "colour": "red"}, 400, "colour"),
        ("POST", "/tenants", {}, 400, "name"),
        ("POST", "/keys", {"role": "king"}, 400, "role"),
        ("POST", "/keys", {"role": "viewer", "tenant": "nobody"}, 404, "tenant"),
        ("POST", "/keys", {"role": "viewer", "label": "x" * 201}, 400, "label"),
        ("POST", "/deployments", {"model": "nothing"}, 404, "model"),
        ("POST", "/deployments", {"model": "echo@0"}, 400, "model"),
        ("POST", "/deployments", {"model": "echo", "version": 0}, 404, "version"),
        ("POST", "/deployments", {"model": "echo", "version": 1 << 62}, 404, "version"),
        ("POST", "/deployments", {"model": "echo", "replicas": -1}, 400, "replicas"),
        ("POST", "/deployments", {"model": "echo", "threads": "two"}, 400, "threads"),
        ("POST", "/deployments", {"model": "echo", "traffic_percent": 101}, 400, "traffic_percent"),
        ("POST", "/deployments", {"model": "echo", "version": -(10**30)}, 404, "version"),
        ("POST", "/deployments", {"model": "echo", "traffic_percent": 0.001}, 400, "traffic_percent"),
        ("PUT", "/models/echo/traffic/overrides/risk", {"version": -(10**30)}, 404, "version"),
        ("GET", f"/models/echo/versions/-{'9' * 30}", None, 404, "version"),
        ("GET", "/deployments/echo", None, 400, "version"),
        ("GET", "/deployments/echo@2000000", None, 404, "version"),
        ("GET", "/models/echo/versions/0", None, 404, "version"),
        ("GET", "/models/echo/versions/99999999999999999999999", None, 404, "version"),
        ("GET", "/models?limit=0", None, 400, "limit"),
        ("GET", "/changes?cursor=x", None, 400, "cursor"),
        ("GET", "/changes?since=yesterday", None, 400, "since"),
        ("PATCH", "/models/echo", {"timeout_s": 0}, 400, "timeout_s"),
        ("PATCH", "/models/echo", {"body_max_bytes": 0}, 400, "body_max_bytes"),
        ("POST", "/models/echo/versions", {"digest": "0" * 64, "file_name": "a.onnx"}, 404, "digest"),
        ("POST", "/models/echo/versions", {"digest": "../../etc", "file_name": "a.onnx"}, 400, "digest"),
        ("POST", "/models/echo/versions", {"digest": "0" * 64, "file_name": "../a.onnx"}, 400, "file_name"),
        ("POST", "/models/echo/versions", {"digest": "0" * 64, "file_name": "a.exe"}, 400, "file_name"),
        ("POST", "/models/echo/versions", {"digest": "0" * 64, "file_name": "a.pkl"}, 404, "digest"),
    ],
)
def test_bad_input_names_its_field(
    served: Control, method: str, path: str, body: object, status: int, field: str
) -> None:
    problem = served.refused(method, path, body)
    assert (problem.status, problem.field) == (status, field), problem


def test_malformed_bodies_and_unknown_routes(served: Control) -> None:
    for content in (b"{", b"", b"[1]", b'{"name": "\xff"}', b"null"):
        assert served.refused("POST", "/tenants", content=content).status == 400
    assert served.refused("POST", "/tenants", content=b'"' + b"x" * (1 << 20) + b'"').status == 413
    assert served.refused("GET", "/nothing").code == "not-found"
    assert served.refused("DELETE", "/models").status == 405


def test_artifacts_are_what_their_digest_says(served: Control) -> None:
    assert served.refused("PUT", f"/artifacts/{'a' * 64}", content=b"other bytes").field == "digest"
    assert served.call("HEAD", f"/artifacts/{'a' * 64}").status_code == 404
    assert served.call("HEAD", f"/artifacts/{served.put(b'x' * (2 << 20))}").headers["x-artifact-size"] == str(2 << 20)
    assert served.refused("PUT", f"/artifacts/{'a' * 64}", content=b"x" * (ARTIFACT_MAX + 1)).status == 413
    assert list((served.folder / "artifacts" / "incoming").iterdir()) == []


def test_a_model_that_cannot_be_served_is_refused_and_leaves_no_version(served: Control) -> None:
    garbage = served.put(b"not a model")
    problem = served.refused("POST", "/models/bad/versions", {"digest": garbage, "file_name": "m.onnx"})
    assert problem.status == 422
    artifact = models.exits_at_load()
    body = {"digest": served.put(artifact.content), "file_name": artifact.file_name, "options": artifact.options}
    problem = served.refused("POST", "/models/bad/versions", body | {"signature": artifact.signature})
    assert problem.status == 422 and "crashed while loading" in problem.detail
    assert served.refused("GET", "/models/bad").status == 404
    assert served.do("GET", "/models/echo")["latest"] == 3


def test_lists_come_in_pages(served: Control) -> None:
    for n in range(3):
        served.push(f"page{n}", models.echo_onnx(0.0))
    served.do("PATCH", "/models/page1", {"tags": {"team": "search"}, "description": "The Second"})
    seen: list[str] = []
    cursor = ""
    while True:
        page = served.do("GET", f"/models?q=page&limit=2{cursor}")
        seen += [model["name"] for model in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == ["page0", "page1", "page2"]
    assert [m["name"] for m in served.do("GET", "/models?tag=team=search")["items"]] == ["page1"]
    assert served.do("GET", "/models?tag=team=ads")["items"] == []
    first, second = (served.do("GET", f"/changes?limit=1{c}") for c in ("", f"&cursor={1 << 40}"))
    assert first["items"] == second["items"] and first["next"] == str(first["items"][0]["id"])


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path, url: str) -> None:
    with control(tmp_path, url) as one:
        one.push("echo", models.echo_onnx(0.0))
        key, text = one.key, one.credentials.read_text()
    with control(tmp_path, url) as again:
        assert again.key == key and again.credentials.read_text() == text
        assert again.do("GET", "/models/echo")["latest"] == 1
        assert again.credentials.stat().st_mode & 0o777 == 0o600
        assert len(again.do("GET", "/keys")["items"]) == 1


def test_the_document_tells_every_refusal_and_every_method(served: Control) -> None:
    document = served.do("GET", "/openapi.json", key=None)
    assert len(document["paths"]) == 43
    for path, operations in document["paths"].items():
        concrete = path.replace("{digest}", "0" * 64).replace("{reference}", "echo@1").replace("{number}", "1")
        for name in ("model", "name", "id_", "to", "pinned", "alias"):
            concrete = concrete.replace(f"{{{name}}}", "echo")
        allowed = served.call("OPTIONS", concrete.removeprefix("/api/v1")).headers["allow"].lower().split(", ")
        assert set(allowed) == set(operations) | {"options"}
        for method, operation in operations.items():
            assert {"401", "403", "500"} <= operation["responses"].keys()
            if method != "head":
                for status in ("401", "500"):
                    assert "application/problem+json" in operation["responses"][status]["content"]
    schemas = document["components"]["schemas"]
    assert schemas["TenantCreate"]["additionalProperties"] is False and "pattern" in str(schemas["TenantCreate"])
