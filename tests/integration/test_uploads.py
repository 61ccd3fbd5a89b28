"""Artifacts through the API: uploads in parts, lies about them, what is removed and what never is."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from headrace.registry import inventory
from tests import models
from tests.integration.control import ARTIFACT_MAX, Control, control

CONTENT = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Control]:
    with control(tmp_path) as one:
        yield one


def begin(served: Control, content: bytes = CONTENT, **options: Any) -> Any:
    body = {"digest": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    return served.do("POST", "/uploads", body, **options)


def part(start: int, end: int, content: bytes = CONTENT) -> dict[str, Any]:
    headers = {"content-range": f"bytes {start}-{end - 1}/{len(content)}"}
    return {"content": content[start:end], "headers": headers}


def test_parts_become_an_artifact(served: Control) -> None:
    upload = begin(served)
    path = f"/uploads/{upload['id']}"
    assert upload["offset"] == 0
    for start in range(0, 300_000, 100_000):
        assert served.call("HEAD", f"/artifacts/{DIGEST}").status_code == 404
        assert served.do("PUT", path, **part(start, start + 100_000))["offset"] == start + 100_000
    assert served.do("POST", f"{path}/commit") == {"digest": DIGEST, "size_bytes": 300_000}
    assert served.call("HEAD", f"/artifacts/{DIGEST}").headers["x-artifact-size"] == "300000"
    assert served.refused("GET", path).status == 404
    assert (served.folder / "artifacts" / "sha256" / DIGEST[:2] / DIGEST).read_bytes() == CONTENT
    assert list((served.folder / "artifacts" / "incoming").iterdir()) == []


def test_an_upload_goes_on_after_a_restart_where_it_stood(tmp_path: Path) -> None:
    with control(tmp_path) as first:
        upload = begin(first)
        first.do("PUT", f"/uploads/{upload['id']}", **part(0, 120_000))
    with control(tmp_path) as second:
        again = begin(second)
        assert (again["id"], again["offset"]) == (upload["id"], 120_000)
        second.do("PUT", f"/uploads/{upload['id']}", **part(120_000, 300_000))
        assert second.do("POST", f"/uploads/{upload['id']}/commit")["digest"] == DIGEST


def test_a_part_is_kept_whole_or_not_at_all(served: Control) -> None:
    upload = begin(served)
    path = f"/uploads/{upload['id']}"
    served.do("PUT", path, **part(0, 100_000))
    refused = served.refused("PUT", path, **part(0, 100_000))  # its answer was lost, and it is sent again
    assert (refused.status, refused.field) == (409, "content-range")
    assert "100000" in refused.detail
    short = part(100_000, 200_000) | {"content": b"short"}
    assert served.refused("PUT", path, **short).field == "content-range"
    long = part(100_000, 200_000) | {"content": b"l" * 100_001}
    assert served.refused("PUT", path, **long).field == "content-range"
    assert served.do("GET", path)["offset"] == 100_000
    missing = served.refused("POST", f"{path}/commit")
    assert (missing.status, missing.field) == (409, "offset")
    served.do("PUT", path, **part(100_000, 300_000))
    assert served.do("POST", f"{path}/commit")["digest"] == DIGEST


def test_two_who_send_the_same_share_the_work(served: Control) -> None:
    path = f"/uploads/{begin(served)['id']}"

    async def both() -> list[int]:
        headers = {"authorization": f"Bearer {served.key}"}
        sends = [
            served.client.put(
                f"/api/v1{path}",
                content=CONTENT[:150_000],
                headers=headers | {"content-range": "bytes 0-149999/300000"},
            )
            for _ in range(4)
        ]
        return sorted(response.status_code for response in await asyncio.gather(*sends))

    assert served.run(both()) == [200, 409, 409, 409]
    served.do("PUT", path, **part(150_000, 300_000))
    assert served.do("POST", f"{path}/commit")["digest"] == DIGEST


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"digest": "no digest", "size_bytes": 5}, 400, "digest"),
        ({"digest": "A" * 64, "size_bytes": 5}, 400, "digest"),
        ({"digest": DIGEST, "size_bytes": 0}, 400, "size_bytes"),
        ({"digest": DIGEST, "size_bytes": -1}, 400, "size_bytes"),
        ({"digest": DIGEST, "size_bytes": ARTIFACT_MAX + 1}, 413, "size_bytes"),
        ({"digest": DIGEST, "size_bytes": "many"}, 400, "size_bytes"),
        ({"digest": DIGEST}, 400, "size_bytes"),
    ],
)
def test_an_upload_that_cannot_be_is_refused_at_once(served: Control, body: Any, status: int, field: str) -> None:
    refused = served.refused("POST", "/uploads", body)
    assert (refused.status, refused.field) == (status, field)


RANGES = ["", "bytes", "bytes 0-9", "bytes 9-0/300000", "bytes 0-9/10", "bytes 0-300000/300000", "bytes -5-9/300000"]
RANGES += ["x 0-9/300000", "bytes 0-9/*", f"bytes 0-{'9' * 40}/300000"]


@pytest.mark.parametrize("given", RANGES)
def test_a_range_that_makes_no_sense_is_refused(served: Control, given: str) -> None:
    path = f"/uploads/{begin(served)['id']}"
    refused = served.refused("PUT", path, content=b"0123456789", headers={"content-range": given})
    assert (refused.status, refused.field) == (400, "content-range")
    assert served.do("GET", path)["offset"] == 0


def test_a_lie_about_the_digest_is_found_and_the_upload_given_up(served: Control) -> None:
    body = {"digest": "a" * 64, "size_bytes": len(CONTENT)}
    path = f"/uploads/{served.do('POST', '/uploads', body)['id']}"
    served.do("PUT", path, **part(0, 300_000))
    refused = served.refused("POST", f"{path}/commit")
    assert (refused.status, refused.field) == (400, "digest")
    assert DIGEST in refused.detail
    assert served.refused("GET", path).status == 404
    assert served.call("HEAD", f"/artifacts/{'a' * 64}").status_code == 404
    assert list((served.folder / "artifacts" / "incoming").iterdir()) == []


def test_uploads_belong_to_their_tenant_and_need_a_developer(served: Control) -> None:
    served.do("POST", "/tenants", {"name": "other"})
    other, viewer = served.key_of("developer", "other"), served.key_of("viewer")
    path = f"/uploads/{begin(served)['id']}"
    assert served.refused("GET", path, key=other).status == 404
    assert served.refused("PUT", path, key=other, **part(0, 10)).status == 404
    assert served.refused("DELETE", path, key=other).status == 404
    assert served.do("GET", "/uploads", key=other)["items"] == []
    assert begin(served, key=other)["id"] != path.rpartition("/")[2]
    for method, where in (("POST", "/uploads"), ("PUT", path), ("DELETE", path), ("POST", f"{path}/commit")):
        options = part(0, 10) if method == "PUT" else {}
        json = {"digest": DIGEST, "size_bytes": 5} if where == "/uploads" else None
        assert served.refused(method, where, json, key=viewer, **options).status == 403
    assert [one["digest"] for one in served.do("GET", "/uploads")["items"]] == [DIGEST]
    served.do("DELETE", path)
    assert served.refused("GET", path).status == 404


def test_a_tenant_may_have_so_many_uploads_in_progress(served: Control) -> None:
    for k in range(64):
        begin(served, b"%d" % k)
    refused = served.refused("POST", "/uploads", {"digest": DIGEST, "size_bytes": 5})
    assert (refused.status, refused.code) == (429, "quota-exceeded")
    begin(served, b"5")  # one that is in progress


# ------------------------------------------------------------------------------------------------ what is removed
def variant(k: int) -> models.Artifact:
    """A model like another, of other bytes."""
    base = models.echo_onnx()
    model = onnx.load_from_string(base.content)
    model.doc_string = f"variant {k}"
    return dataclasses.replace(base, content=model.SerializeToString())


def test_what_no_version_needs_goes_after_its_grace_period(served: Control) -> None:
    served.push("kept", variant(0))
    alone = served.put(variant(1).content)
    arriving = begin(served)
    found = served.do("GET", "/artifacts")["items"]
    assert {one["digest"]: one["versions"] for one in found} == {variant(0).digest: ["default/kept@1"], alone: []}
    for body in ({}, {"grace_s": 0, "dry_run": True}):
        result = served.do("POST", "/artifacts/gc", body)["result"]
        assert [one["digest"] for one in result["removed"]] == ([alone] if body else [])
        assert served.call("HEAD", f"/artifacts/{alone}").status_code == 200
    result = served.do("POST", "/artifacts/gc", {"grace_s": 0})
    assert [one["digest"] for one in result["result"]["removed"]] == [alone]
    assert result["result"]["bytes_removed"] == len(variant(1).content)
    assert result["result"]["kept"] == 1
    assert served.call("HEAD", f"/artifacts/{alone}").status_code == 404
    assert served.do("GET", "/changes")["items"][0]["after"]["digests"] == [alone]
    assert served.do("GET", f"/uploads/{arriving['id']}")["offset"] == 0
    assert served.push("kept", variant(0))["result"]["version"] == 1
    refused = served.refused("POST", "/models/late/versions", {"digest": alone, "file_name": "m.onnx"})
    assert (refused.status, refused.field) == (404, "digest")
    served.push("late", variant(1))


def test_a_version_whose_artifact_is_lost_is_told_of(served: Control) -> None:
    digest = served.push("lost", variant(2))["result"]["digest"]
    path = served.artifacts.path(digest)
    assert path is not None
    path.unlink()
    assert served.do("POST", "/artifacts/gc", {})["result"]["missing"] == [digest]


def test_only_an_admin_lists_and_removes(served: Control) -> None:
    key = served.key_of("operator")
    assert served.refused("GET", "/artifacts", key=key).status == 403
    assert served.refused("POST", "/artifacts/gc", {}, key=key).status == 403
    refused = served.refused("POST", "/artifacts/gc", {"grace_s": -1})
    assert (refused.status, refused.field) == (400, "grace_s")


def test_a_removal_that_was_cut_off_is_finished_and_a_put_waits_for_it(served: Control) -> None:
    digest = served.put(variant(3).content)
    served.run(served.store.run(lambda c: inventory.condemn(c, [digest])))  # and killed before it was removed

    async def put_meanwhile() -> int:
        headers = {"authorization": f"Bearer {served.key}"}
        put = asyncio.ensure_future(
            served.client.put(f"/api/v1/artifacts/{digest}", content=variant(3).content, headers=headers)
        )
        await asyncio.sleep(0)
        await served.artifacts.collect(False, 3600.0)
        return (await put).status_code

    assert served.run(put_meanwhile()) == 200
    assert served.call("HEAD", f"/artifacts/{digest}").status_code == 200
    assert served.do("POST", "/artifacts/gc", {})["result"]["kept"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_no_push_ever_loses_its_artifact_to_a_collection(served: Control, seed: int) -> None:
    """Pushes and collections without any grace, at the same time: whatever was registered is there, and nothing else
    stays in the end."""
    chance = random.Random(seed)
    headers = {"authorization": f"Bearer {served.key}"}
    registered: set[str] = set()
    some = [variant(k) for k in range(8)]
    running = True

    async def push(who: int) -> None:
        for turn in range(6):
            one = chance.choice(some)
            for _ in range(20):
                await served.client.put(f"/api/v1/artifacts/{one.digest}", content=one.content, headers=headers)
                if chance.random() < 0.5:
                    break  # thinks better of it
                body = {"digest": one.digest, "file_name": one.file_name}
                answer = await served.client.post(f"/api/v1/models/m{who}-{turn}/versions", json=body, headers=headers)
                if answer.status_code == 201:
                    registered.add(one.digest)
                    path = served.artifacts.path(one.digest)
                    assert path is not None
                    assert path.read_bytes() == one.content
                    break
                assert answer.status_code == 404, answer.text
                assert answer.json()["field"] == "digest"

    async def collect() -> None:
        while running:
            await served.client.post("/api/v1/artifacts/gc", json={"grace_s": 0}, headers=headers)
            for digest in registered:
                path = served.artifacts.path(digest)
                assert path is not None
                assert path.exists(), digest

    async def all_of_them() -> None:
        nonlocal running
        collecting = [asyncio.ensure_future(collect()) for _ in range(2)]
        try:
            await asyncio.gather(*(push(who) for who in range(4)))
        finally:
            running = False
        await asyncio.gather(*collecting)

    served.run(all_of_them())
    served.do("POST", "/artifacts/gc", {"grace_s": 0})
    assert {one["digest"] for one in served.do("GET", "/artifacts")["items"]} == registered
