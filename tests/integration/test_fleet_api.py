"""What fleet files need of the API: lists over all models, numbers that are asked for, conditions, reasons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.integration.control import Control, control


@pytest.fixture
def served(tmp_path: Path, url: str) -> Iterator[Control]:
    with control(tmp_path, url) as one:
        one.do("POST", "/tenants", {"name": "risk"})
        for name, tenant in (("a", "default"), ("b", "default"), ("a", "risk")):
            for add in (1.0, 2.0):
                one.push(name, models.echo_onnx(add), params={"tenant": tenant})
        yield one


def listed(served: Control, path: str, **options: Any) -> list[Any]:
    found, cursor = [], ""
    while True:
        page = served.do("GET", f"{path}?limit=2{cursor}", **options)
        found += page["items"]
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


def test_versions_of_all_models_are_listed_as_each_model_lists_them(served: Control) -> None:
    served.do("PUT", "/models/a/aliases/best", {"version": 2})
    found = listed(served, "/versions")
    assert [(v["tenant"], v["model"], v["version"]) for v in found] == [
        (tenant, name, n) for tenant, name in (("default", "a"), ("default", "b"), ("risk", "a")) for n in (1, 2)
    ]
    assert found[:2] == served.do("GET", "/models/a/versions")["items"]
    assert found[4:] == served.do("GET", "/models/a/versions?tenant=risk")["items"]
    own = listed(served, "/versions", key=served.key_of("viewer", "risk"))
    assert own == found[4:]
    assert served.refused("GET", "/versions?cursor=a").field == "cursor"


def test_policies_of_all_models_are_listed_as_each_model_shows_it(served: Control) -> None:
    for version in (1, 2):
        served.do("POST", "/deployments", {"model": f"a@{version}"})
        served.fleet.ready("default/a", version)
    served.do("PUT", "/models/a/traffic", {"weights": {"1": 100}})
    served.do("PUT", "/models/a/traffic", {"weights": {"1": 75, "2": 25}})
    served.do("PUT", "/models/a/traffic/overrides/risk", {"version": 2})
    found = listed(served, "/traffic")
    assert [(t["tenant"], t["model"]) for t in found] == [("default", "a"), ("default", "b"), ("risk", "a")]
    assert found[0] == served.do("GET", "/models/a/traffic")
    assert found[0]["overrides"] == {"risk": 2} and found[0]["previous"] == {"1": 100}
    assert found[1] == served.do("GET", "/models/b/traffic")


def test_a_share_that_waits_is_shown_until_it_is_taken(served: Control) -> None:
    first = served.do("POST", "/deployments", {"model": "a@1"})["result"]
    assert first["traffic_on_ready"] == 100.0
    assert (
        served.do("POST", "/deployments", {"model": "a@2", "traffic_percent": 0})["result"]["traffic_on_ready"] == 0.0
    )
    served.fleet.ready("default/a", 1)
    served.do("PUT", "/models/a/traffic", {"weights": {"1": 100}})
    assert served.do("GET", "/deployments/a@1")["traffic_on_ready"] is None


def test_a_version_gets_the_number_that_is_asked_for_or_none(served: Control) -> None:
    body = {"digest": served.put(models.echo_onnx(5.0).content), "file_name": "echo.onnx"}
    taken = served.refused("POST", "/models/a/versions", {**body, "version": 2})
    assert (taken.status, taken.field) == (409, "version") and "the next is a@3" in taken.detail
    assert served.do("POST", "/models/a/versions", {**body, "version": 7})["result"]["version"] == 7
    assert served.do("POST", "/models/a/versions", {**body, "version": 7})["result"]["version"] == 7
    # The same artifact under another number is another version.
    assert served.do("POST", "/models/a/versions", {**body, "version": 9})["result"]["version"] == 9
    assert served.do("POST", "/models/a/versions", body)["result"]["version"] == 9
    assert served.refused("POST", "/models/a/versions", {**body, "version": 0}).status == 400
    assert served.do("POST", "/models/new/versions", {**body, "version": 4})["result"]["version"] == 4


def test_deployments_and_aliases_are_held_by_their_tags(served: Control) -> None:
    new = {"if-none-match": "*"}
    served.do("POST", "/deployments", {"model": "a@1"}, headers=dict(new))
    again = served.refused("POST", "/deployments", {"model": "a@1", "threads": 2}, headers=dict(new))
    assert (again.status, again.field) == (412, "if-none-match")
    tag = served.call("GET", "/deployments/a@1").headers["etag"]
    served.do("POST", "/deployments", {"model": "a@1", "threads": 2}, headers={"if-match": tag})
    for method, path, body in (
        ("POST", "/deployments", {"model": "a@1", "threads": 3}),
        ("DELETE", "/deployments/a@1", None),
    ):
        assert served.refused(method, path, body, headers={"if-match": tag}).status == 412
    assert served.do("GET", "/deployments/a@1")["threads"] == 2
    tag = served.call("GET", "/models/a").headers["etag"]
    served.do("PUT", "/models/a/aliases/best", {"version": 1}, headers={"if-match": tag})
    assert served.refused("PUT", "/models/a/aliases/best", {"version": 2}, headers={"if-match": tag}).status == 412
    assert served.refused("DELETE", "/models/a/aliases/best", headers={"if-match": tag}).status == 412


def test_a_reason_comes_in_a_header_where_the_body_has_none(served: Control) -> None:
    served.do("PUT", "/models/a/grants/risk", headers={"x-reason": "sie%20fragen%3A%20%C3%A4"})
    assert served.do("GET", "/changes?limit=1")["items"][0]["reason"] == "sie fragen: ä"
    served.do("PATCH", "/models/a", {"timeout_s": 2, "reason": "body"}, headers={"x-reason": "header"})
    assert served.do("GET", "/changes?limit=1")["items"][0]["reason"] == "body"


def test_a_key_of_any_role_sees_itself_and_no_other(served: Control) -> None:
    text = served.key_of("viewer", "risk")
    own = served.do("GET", "/keys/self", key=text)
    assert own["tenant"] == "risk" and own["role"] == "viewer" and own["id"] in text
    assert served.do("GET", f"/keys/{own['id']}", key=text) == own
    other = served.do("GET", "/keys/self")["id"]
    assert served.refused("GET", f"/keys/{other}", key=text).status == 403
