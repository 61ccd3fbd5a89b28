"""Keys are rotated without a moment in which none is good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.controlplane import accounts
from headrace.core.database import now
from tests import models, polling
from tests.integration.control import Control, control


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Control]:
    with control(tmp_path) as one:
        yield one


def create(served: Control, **body: Any) -> tuple[str, str]:
    made = served.do("POST", "/keys", {"role": "viewer", **body})["result"]
    return made["key"]["id"], made["text"]


def works(served: Control, text: str) -> bool:
    return served.call("GET", "/models", key=text).status_code == 200


def end(served: Control, id_: str) -> None:
    """As if its time were over."""
    over = accounts.keys.update().where(accounts.keys.c.id == id_).values(expires_at=now(-1))
    served.run(served.store.run(lambda c: c.execute(over)))


def test_both_work_until_the_old_ones_time_is_over(served: Control) -> None:
    old, text = create(served, account="billing-service", label="nightly", role="developer")
    made = served.do("POST", f"/keys/{old}/rotate", {"overlap_s": 3600, "reason": "yearly"})["result"]
    fresh = made["key"]
    assert (fresh["role"], fresh["label"], fresh["account"], fresh["state"]) == (
        "developer", "nightly", "billing-service", "active",
    )  # fmt: skip
    left = served.do("GET", f"/keys/{old}")
    assert left["state"] == "rotating" and left["expires_at"] > now(3500)
    assert works(served, text) and works(served, made["text"])
    assert {old, fresh["id"]} <= served.publisher.state.keys.keys()
    problem = served.refused("POST", f"/keys/{old}/rotate", {})
    assert problem.status == 409 and problem.hint == f"it ends at {left['expires_at']}"
    served.run(served.store.run(accounts.expire_keys))
    assert works(served, text)  # not yet
    end(served, old)
    assert not works(served, text)  # at once, whoever has seen the time
    assert accounts.expired(served.publisher.state.keys.values()) is False  # it read another time
    served.run(served.store.run(accounts.expire_keys))
    served.run(served.publisher.publish())
    assert served.do("GET", f"/keys/{old}")["state"] == "revoked" and works(served, made["text"])
    assert old not in served.publisher.state.keys and fresh["id"] in served.publisher.state.keys
    actions = [c["action"] for c in served.do("GET", "/changes")["items"][:3]]
    assert actions == ["key.expire", "key.rotate", "key.create"]


def test_without_overlap_the_old_one_ends_at_once_and_a_revoked_one_stays_so(served: Control) -> None:
    old, text = create(served)
    made = served.do("POST", f"/keys/{old}/rotate", {"overlap_s": 0})["result"]
    assert not works(served, text) and works(served, made["text"])
    assert served.refused("POST", f"/keys/{old}/rotate", {}).detail == f"key {old} is revoked"
    for overlap_s in (-1, 1e9):
        assert (
            served.refused("POST", f"/keys/{made['key']['id']}/rotate", {"overlap_s": overlap_s}).field == "overlap_s"
        )
    assert served.refused("POST", "/keys/hr_absent/rotate", {}).status == 404
    mine = "_".join(served.key.split("_", 2)[:2])
    problem = served.refused("POST", f"/keys/{mine}/rotate", {"overlap_s": 59})
    assert (problem.status, problem.hint) == (409, "give it 60 seconds or more")


def test_the_text_is_shown_once_and_the_id_of_the_new_one_again(served: Control) -> None:
    old, _ = create(served)
    headers = {"idempotency-key": "rotate-1"}
    made = served.do("POST", f"/keys/{old}/rotate", {}, headers=headers)["result"]
    problem = served.refused("POST", f"/keys/{old}/rotate", {}, headers=dict(headers))
    assert problem.status == 409 and made["key"]["id"] in problem.detail
    assert len(served.do("GET", "/keys?state=rotating")["items"]) == 1


def test_four_eyes_see_through_a_rotation_and_two_keys_of_one_account(served: Control) -> None:
    served.do("PATCH", "/tenants/default", {"approval": "four-eyes"})
    old, text = create(served, role="operator")
    rotated = served.do("POST", f"/keys/{old}/rotate", {})["result"]["text"]
    _, second = create(served, role="operator", account="ann")
    _, third = create(served, role="operator", account="ann")
    for who, model, others in ((text, "m1", rotated), (second, "m2", third)):
        artifact = models.echo_onnx()
        body = {"digest": served.put(artifact.content), "file_name": "a.onnx"}
        served.do("POST", f"/models/{model}/versions", body, key=who)
        assert served.refused("POST", f"/models/{model}/versions/1/approve", key=others).status == 403
        served.do("POST", f"/models/{model}/versions/1/approve")


def test_the_routers_let_go_of_the_old_one_by_themselves(client: Client, platform: Platform, echo: str) -> None:
    made = client.keys.create("viewer").result
    x = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}

    def status(text: str) -> int:
        url = f"{client.access.url}/v2/models/{echo}/infer"
        return httpx.post(url, json=x, headers={"authorization": f"Bearer {text}"}).status_code

    assert status(made.text) == 200
    outcome = client.keys.rotate(made.key.id, 0.5)
    assert outcome.change.effective and status(outcome.result.text) == 200
    polling.until(lambda: status(made.text) == 401)
    assert status(outcome.result.text) == 200
