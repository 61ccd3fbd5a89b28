"""What the control plane's API promises of every resource: the first answer again under its idempotency key, entity
tags and conditions, pages, refusals that say what to type next, and no half state where the store fails."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import models
from tests.integration.control import Control, control


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[], str]) -> Iterator[Control]:
    """A control plane with model ``echo`` at versions 1 and 2, both ready; 1 serves."""
    with control(tmp_path_factory.mktemp("control"), new_database()) as one:
        for version, add in ((1, 0.0), (2, 1.0)):
            one.push("echo", models.echo_onnx(add))
            one.do("POST", "/deployments", {"model": f"echo@{version}"})
            one.fleet.ready("default/echo", version)
        for weights in ({"1": 50, "2": 50}, {"1": 100}):  # so that there is something to roll back to
            one.do("PUT", "/models/echo/traffic", {"weights": weights})
        one.do("POST", "/tenants", {"name": "risk"})
        yield one


# ---------------------------------------------------------------------------------------------------- idempotency
MUTATIONS = [
    ("POST", "/tenants", {"name": "made-once"}),
    ("PATCH", "/tenants/risk", {"burst": 77}),
    ("PATCH", "/models/echo", {"description": "once"}),
    ("PUT", "/models/echo/grants/risk", None),
    ("POST", "/deployments", {"model": "echo@2", "threads": 2}),
    ("PATCH", "/deployments/echo@2", {"replicas": 3}),
    ("PUT", "/models/echo/traffic", {"weights": {"1": 60, "2": 40}}),
    ("POST", "/models/echo/rollback", {"reason": "once"}),
    ("PUT", "/models/echo/traffic/overrides/risk", {"version": 2}),
    ("DELETE", "/models/echo/traffic/overrides/risk", None),
]


@pytest.mark.parametrize(("method", "path", "body"), MUTATIONS)
def test_the_same_key_gives_the_first_answer_again_whatever_has_happened_since(
    served: Control, method: str, path: str, body: Any
) -> None:
    if method == "DELETE":
        served.do("PUT", path, {"version": 1})
    headers = {"idempotency-key": f"{method} {path}"}
    first = served.call(method, path, body, headers=dict(headers))
    assert first.is_success, first.text
    served.do("PATCH", "/models/echo", {"description": "since then"})
    served.do("PATCH", "/tenants/risk", {"burst": 99})
    served.do("PUT", "/models/echo/traffic", {"weights": {"1": 100}})
    served.do("POST", "/deployments", {"model": "echo@2"})
    newest = served.do("GET", "/changes?limit=1")["items"]
    again = served.call(method, path, body, headers=dict(headers))
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert served.do("GET", "/changes?limit=1")["items"] == newest, "nothing was done"
    other = served.refused(method, f"{path}?tenant=default", body, headers=dict(headers))
    assert (other.status, other.field) == (409, "idempotency-key") and other.hint


def test_those_who_come_at_once_get_one_answer(served: Control) -> None:
    headers = {"authorization": f"Bearer {served.key}", "idempotency-key": "at-once"}
    body = msgspec.json.encode({"weights": {"1": 55, "2": 45}})

    async def together() -> list[Any]:
        put = served.client.put
        return await asyncio.gather(
            *(put("/api/v1/models/echo/traffic", content=body, headers=headers) for _ in range(12))
        )

    before = served.do("GET", "/models/echo/traffic")["epoch"]
    answers = served.run(together())
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}
    assert served.do("GET", "/models/echo/traffic")["epoch"] == before + 1


def test_an_answer_that_was_never_given_is_given_to_the_next_who_asks(
    served: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> Any:
        raise RuntimeError("no router can be reached")

    headers = {"idempotency-key": "unpublished"}
    with monkeypatch.context() as patched:
        patched.setattr(served.publisher, "publish", broken)
        first = served.do("PATCH", "/tenants/risk", {"burst": 5}, headers=dict(headers))
    assert not first["change"]["effective"]
    second = served.do("PATCH", "/tenants/risk", {"burst": 5}, headers=dict(headers))
    assert second["change"]["effective"] and second["change"]["id"] == first["change"]["id"]
    assert served.do("PATCH", "/tenants/risk", {"burst": 5}, headers=dict(headers)) == second


def test_a_secret_is_not_kept_for_a_second_answer(served: Control) -> None:
    headers = {"idempotency-key": "one-key"}
    made = served.do("POST", "/keys", {"role": "viewer"}, headers=dict(headers))["result"]
    count = len(served.do("GET", "/keys")["items"])
    again = served.refused("POST", "/keys", {"role": "viewer"}, headers=dict(headers))
    assert again.status == 409 and made["key"]["id"] in again.detail and made["key"]["id"] in str(again.hint)
    assert len(served.do("GET", "/keys")["items"]) == count
    stored = served.stored()
    assert made["key"]["id"].encode() in stored and made["text"].encode() not in stored


def test_a_refusal_is_not_remembered(served: Control) -> None:
    headers = {"idempotency-key": "pin-later"}
    body = {"version": 2}
    assert served.refused("PUT", "/models/echo/traffic/overrides/later", body, headers=dict(headers)).status == 404
    served.do("POST", "/tenants", {"name": "later"})
    assert served.do("PUT", "/models/echo/traffic/overrides/later", body, headers=dict(headers))
    served.do("DELETE", "/models/echo/traffic/overrides/later")


# ---------------------------------------------------------------------------------------------------- entity tags
@pytest.mark.parametrize(
    ("method", "path", "body", "other"),
    [
        ("PATCH", "/tenants/risk", {"burst": 31}, {"burst": 32}),
        ("PATCH", "/models/echo", {"description": "a"}, {"description": "b"}),
        ("PATCH", "/deployments/echo@2", {"replicas": 2}, {"replicas": 4}),
        ("PUT", "/models/echo/traffic", {"weights": {"1": 90, "2": 10}}, {"weights": {"1": 100}}),
    ],
)
def test_if_match_keeps_a_change_from_undoing_another(
    served: Control, method: str, path: str, body: Any, other: Any
) -> None:
    tag = served.call("GET", path).headers["etag"]
    assert served.call("GET", path).headers["etag"] == tag
    served.do(method, path, body, headers={"if-match": tag})
    assert served.call("GET", path).headers["etag"] != tag
    refused = served.refused(method, path, other, headers={"if-match": tag})
    assert (refused.status, refused.code, refused.field) == (412, "precondition-failed", "if-match")
    assert refused.hint
    now = served.call("GET", path).headers["etag"]
    served.do(method, path, other, headers={"if-match": f'"0", {now}'})
    served.do(method, path, other, headers={"if-match": "*"})


def test_everything_that_can_be_read_by_itself_has_a_tag(served: Control) -> None:
    key = served.do("GET", "/keys")["items"][0]["id"]
    paths = ("/tenants/risk", f"/keys/{key}", "/models/echo", "/models/echo/versions/1", "/deployments/echo@1")
    for path in (*paths, "/models/echo/traffic"):
        assert served.call("GET", path).headers["etag"].strip('"'), path
    assert served.refused("GET", "/keys/hr_nobody").status == 404


def test_a_deployments_tag_stays_while_its_replicas_come_and_go(served: Control) -> None:
    tag = served.call("GET", "/deployments/echo@2").headers["etag"]
    standing = served.fleet.standings.pop(("default/echo", 2))
    assert served.call("GET", "/deployments/echo@2").headers["etag"] == tag
    served.fleet.standings["default/echo", 2] = standing


# ---------------------------------------------------------------------------------------------------- pages
LISTS = {
    "/tenants": "no spaces",
    "/keys": "2026-01-31T08:00:00.000Z",
    "/models": "echo",
    "/models/echo/versions": "one",
    "/deployments": "default/echo",
    "/models/echo/traffic/history": "-1",
    "/changes": "x",
}


@pytest.mark.parametrize("path", LISTS)
def test_every_list_is_read_whole_in_pages_of_any_size(served: Control, path: str) -> None:
    served.do("POST", "/keys", {"role": "viewer"})
    whole = served.do("GET", f"{path}?limit=1000")
    assert (whole["next"] is None and len(whole["items"]) > 1) or path == "/models"
    for limit in (1, 2):
        seen, cursor = [], ""
        while True:
            page = served.do("GET", f"{path}?limit={limit}{cursor}")
            assert len(page["items"]) <= limit
            seen += page["items"]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert seen == whole["items"]


@pytest.mark.parametrize(("path", "cursor"), LISTS.items())
def test_a_cursor_or_limit_that_is_none_is_named(served: Control, path: str, cursor: str) -> None:
    for bad in (cursor, "%00", "9" * 5000):
        problem = served.refused("GET", f"{path}?cursor={bad}")
        assert (problem.status, problem.field) == (400, "cursor"), bad[:20]
    for bad in ("0", "-1", "1001", "all", "1.5"):
        problem = served.refused("GET", f"{path}?limit={bad}")
        assert (problem.status, problem.field) == (400, "limit"), bad


def test_lists_are_filtered(served: Control) -> None:
    served.do("POST", "/tenants", {"name": "sleeping"})
    served.do("PATCH", "/tenants/sleeping", {"state": "suspended"})
    assert [t["name"] for t in served.do("GET", "/tenants?state=suspended")["items"]] == ["sleeping"]
    assert {k["role"] for k in served.do("GET", "/keys?role=admin")["items"]} == {"admin"}
    assert served.do("GET", "/keys?state=revoked")["items"] == []
    assert [d["version"] for d in served.do("GET", "/deployments?model=echo&state=ready")["items"]] == [1, 2]
    assert served.do("GET", "/deployments?state=failed")["items"] == []
    assert len(served.do("GET", "/models/echo/versions?engine=onnx")["items"]) == 2
    assert served.do("GET", "/models/echo/versions?tag=none")["items"] == []


# ---------------------------------------------------------------------------------------------------- what serves stays
def test_what_serves_is_not_taken_away_by_accident(served: Control) -> None:
    served.do("PUT", "/models/echo/traffic", {"weights": {"1": 100}})
    for method, path, body in (
        ("DELETE", "/deployments/echo@1", None),
        ("PATCH", "/deployments/echo@1", {"replicas": 0}),
        ("POST", "/deployments", {"model": "echo@1", "replicas": 0}),
    ):
        problem = served.refused(method, path, body)
        assert problem.status == 409 and "100 % of the traffic" in problem.detail
        assert "headrace traffic set echo" in str(problem.hint) and "--force" in str(problem.hint)
    served.do("PUT", "/models/echo/traffic/overrides/risk", {"version": 2})
    for method, body in (("DELETE", None), ("PATCH", {"replicas": 0})):
        problem = served.refused(method, "/deployments/echo@2", body)
        assert problem.status == 409 and "headrace traffic unpin echo risk" in str(problem.hint)
    served.do("DELETE", "/models/echo/traffic/overrides/risk")
    assert served.do("PATCH", "/deployments/echo@2", {"replicas": 0})["result"]["replicas"] == 0
    served.do("PATCH", "/deployments/echo@2", {"replicas": 1})


def test_by_force_it_is(served: Control) -> None:
    served.push("gone", models.echo_onnx(7.0))
    served.do("POST", "/deployments", {"model": "gone@1"})
    served.fleet.ready("default/gone", 1)
    served.do("PUT", "/models/gone/traffic", {"weights": {"1": 100}})
    assert served.do("PATCH", "/deployments/gone@1", {"replicas": 0, "force": True})["result"]["replicas"] == 0
    assert served.refused("DELETE", "/deployments/gone@1?force=perhaps").field == "force"
    assert served.do("DELETE", "/deployments/gone@1?force=true")["result"]["state"] == "stopped"


# ---------------------------------------------------------------------------------------------------- a full disk
@contextmanager
def files_may_not_grow(size_bytes: int) -> Iterator[None]:
    """As on a full disk: the system refuses to write past this size of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_leaves_everything_as_it_was(tmp_path: Path) -> None:
    with control(tmp_path) as one:
        one.do("POST", "/tenants", {"name": "kept"})
        before = one.do("GET", "/changes")["items"]
        headers = {"idempotency-key": "full"}
        with files_may_not_grow((tmp_path / "headrace.db-wal").stat().st_size):
            problem = one.refused("POST", "/tenants", {"name": "lost"}, headers=dict(headers))
            assert (problem.status, problem.code) == (503, "unavailable")
            assert one.do("GET", "/tenants/kept")["name"] == "kept", "reading goes on"
        assert one.refused("GET", "/tenants/lost").status == 404
        assert one.do("GET", "/changes")["items"] == before
        assert one.do("POST", "/tenants", {"name": "lost"}, headers=dict(headers))["result"]["name"] == "lost"


def test_an_artifact_for_which_there_is_no_room_is_told_and_not_kept(served: Control) -> None:
    content = b"w" * (3 << 20)
    with files_may_not_grow(1 << 20):
        problem = served.refused("PUT", f"/artifacts/{'a' * 64}", content=content)
    assert (problem.status, problem.code) == (503, "unavailable")
    assert list((served.folder / "artifacts" / "incoming").iterdir()) == []
