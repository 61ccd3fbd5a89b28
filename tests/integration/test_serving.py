"""The data plane of a real platform: what clients send, and what they get."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from headrace.client import calls
from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.resources import Quota, TenantUpdate


def body(value: object, *, shape: object = (1, 1), name: str = "x", datatype: str = "FP32") -> dict[str, Any]:
    return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": value}]}


@pytest.fixture
def http(platform: Platform) -> Any:
    access = platform.client.access
    with httpx.Client(base_url=access.url, headers={"authorization": f"Bearer {access.api_key}"}) as found:
        yield found


def test_json_nested_flat_binary_and_compressed_bodies_mean_the_same(http: httpx.Client, echo: str) -> None:
    url = f"/v2/models/{echo}/infer"
    for data in ([1.5, 2.5], [[1.5], [2.5]]):
        reply = http.post(url, json={"id": "a", **body(data, shape=[2, 1])})
        assert reply.json()["outputs"][0]["data"] == [1.5, 2.5], reply.text
        assert reply.json()["id"] == "a"
    text = json.dumps(body([1.5, 2.5], shape=[2, 1])).encode()
    for coding, packed in (("gzip", gzip.compress(text)), ("deflate", zlib.compress(text))):
        reply = http.post(url, content=packed, headers={"content-encoding": coding})
        assert reply.json()["outputs"][0]["data"] == [1.5, 2.5], reply.text
    raw = np.array([1.5, 2.5], np.float32).tobytes()
    tensor = {"name": "x", "shape": [2, 1], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = http.post(url, content=head + raw, headers={"inference-header-content-length": str(len(head))})
    cut = int(reply.headers["inference-header-content-length"])
    assert reply.content[cut:] == raw
    reply = http.post(url, content=raw, headers={"inference-header-content-length": "0"})
    assert reply.content.endswith(raw)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (body([1.0], name="y"), "unknown input 'y'"),
        (body([1.0], datatype="FP64"), "datatype 'FP64', expected FP32"),
        (body([1.0], shape=[1, 2]), "shape [1, 2], expected [-1, 1]"),
        (body([1.0], shape=[-1, 1]), "shape [-1, 1], expected [-1, 1]"),
        (body([1.0, 2.0]), "2 values, shape [1, 1] needs 1"),
        (body(["a"]), "a string, expected FP32"),
        (body([None]), "must be finite"),
        (body([1e39]), "must be finite"),
        (body([[1.0], 2.0]), "not a regular array"),
        ({"inputs": []}, "input 'x' is missing"),
        ({}, "missing required field `inputs`"),
        ({**body([1.0]), "outputs": [{"name": "z"}]}, "unknown output 'z'"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(http: httpx.Client, echo: str, wrong: dict[str, Any], says: str) -> None:
    reply = http.post(f"/v2/models/{echo}/infer", json=wrong)
    assert reply.status_code == 400, reply.text
    assert says in reply.json()["error"]


def test_malformed_bodies_and_headers_are_refused(http: httpx.Client, echo: str) -> None:
    url = f"/v2/models/{echo}/infer"
    good = json.dumps(body([1.0])).encode()
    for content, headers, status in (
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (good, {"content-encoding": "gzip"}, 400),
        (good, {"content-encoding": "br"}, 415),
        (good, {"x-request-timeout-ms": "soon"}, 400),
        (good, {"inference-header-content-length": "-5"}, 400),
        (good, {"inference-header-content-length": "99999"}, 400),
    ):
        reply = http.post(url, content=content, headers=headers)
        assert reply.status_code == status, reply.text
        assert "Traceback" not in reply.text
        assert reply.json()["error"]


def test_keys_models_and_methods(http: httpx.Client, echo: str) -> None:
    url = f"/v2/models/{echo}/infer"
    assert httpx.post(f"{http.base_url}{url}", json=body([1.0])).status_code == 401
    assert http.post(url, json=body([1.0]), headers={"authorization": "Bearer hr_no"}).status_code == 401
    assert http.post("/v2/models/none/infer", json=body([1.0])).status_code == 404
    assert http.post(f"/v2/models/{echo}/versions/99/infer", json=body([1.0])).status_code == 404
    assert http.get(url).status_code == 405
    assert http.get("/v2/nothing").status_code == 404
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").status_code == 200
    assert http.get("/v2").json()["name"] == "headrace"
    metadata = http.get(f"/v2/models/{echo}").json()
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
    assert http.get(f"/v2/models/{echo}/ready").status_code == 200
    index = http.post("/v2/repository/index", json={"ready": True}).json()
    assert {"name": echo, "version": "1", "state": "READY", "reason": ""} in index
    before = http.get(f"/v2/models/{echo}/stats").json()["model_stats"][0]["inference_stats"]["success"]["count"]
    http.post(url, json=body([1.0]))
    after = http.get(f"/v2/models/{echo}/stats").json()["model_stats"][0]["inference_stats"]["success"]["count"]
    assert after == before + 1


def test_another_tenants_model_needs_a_grant_and_quotas_hold(client: Client, echo: str) -> None:
    client.call(calls.create_tenant("other", Quota(0.01, 3.0, 100)))
    key = client.call(calls.create_key("viewer", "other", "")).result.text
    url, headers = f"{client.access.url}/v2/models/{echo}/infer", {"authorization": f"Bearer {key}"}
    assert httpx.post(url, json=body([1.0]), headers=headers).status_code == 403
    client.call(calls.grant(echo, "other"))
    replies = [httpx.post(url, json=body([1.0]), headers=headers) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert 1 < int(replies[-1].headers["retry-after"]) <= 100
    assert replies[-1].json() == {"error": "the request rate of tenant other is used up: 0.01 a second"}
    client.call(calls.update_tenant("other", TenantUpdate("suspended")))
    assert httpx.post(url, json=body([1.0]), headers=headers).status_code == 403


def test_clients_that_leave_or_send_rubbish_disturb_nobody(platform: Platform, http: httpx.Client, echo: str) -> None:
    host, port = platform.client.access.url.removeprefix("http://").split(":")
    text = json.dumps(body([1.0])).encode()
    key = platform.client.access.api_key
    head = f"POST /v2/models/{echo}/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode()
    whole = head + b"Content-Length: %d\r\n\r\n" % len(text) + text
    for _ in range(50):
        with socket.create_connection((host, int(port))) as gone:
            gone.sendall(whole * 3)
    for rubbish, status in (
        (b"\x00\x01 rubbish\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 40_000, b"431"),
    ):
        with socket.create_connection((host, int(port)), timeout=60) as sent:
            sent.sendall(rubbish)
            assert status in sent.recv(100)
    assert http.post(f"/v2/models/{echo}/infer", json=body([1.0])).status_code == 200


def test_large_bodies_pipelined_come_back_in_order(platform: Platform, echo: str) -> None:
    host, port = platform.client.access.url.removeprefix("http://").split(":")
    rows = 200_000

    async def go() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        for number in range(6):
            raw = np.full((rows, 1), number, np.float32).tobytes()
            head = f"POST /v2/models/{echo}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n"
            head += (
                f"Authorization: Bearer {platform.client.access.api_key}\r\nInference-Header-Content-Length: 0\r\n\r\n"
            )
            writer.write(head.encode() + raw)
        for number in range(6):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert head.startswith("http/1.1 200"), head
            length = next(int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:"))
            reply = await reader.readexactly(length)
            assert np.array_equal(np.frombuffer(reply[-4 * rows :], np.float32), np.full(rows, number, np.float32))
        writer.close()

    asyncio.run(asyncio.wait_for(go(), 60))
