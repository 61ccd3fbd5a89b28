"""Bad input of every kind on the data plane: a clear error, in time, and a neighbour that answers throughout."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.client import calls
from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.resources import ModelUpdate, Quota, TenantUpdate
from tests import models
from tests.integration.wire import Reply, Wire, answering_throughout, infer, replies

HEADER_TIMEOUT_S = 0.6
IDLE_TIMEOUT_S = 1.5
OK = infer([[1.0]])
DEEP = 100_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with short time-outs, models ``echo``, ``neighbour`` and ``texts``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HEADER_TIMEOUT_S", str(HEADER_TIMEOUT_S))
        patch.setenv("HEADRACE_IDLE_TIMEOUT_S", str(IDLE_TIMEOUT_S))
        started = Platform(str(tmp_path_factory.mktemp("bad-input")))
    client = started.client
    client.call(calls.update_tenant("default", TenantUpdate(None, 1e6, 1e6, 1_000_000)))
    for name, artifact in (
        ("echo", models.echo_onnx()),
        ("neighbour", models.echo_onnx()),
        ("texts", models.identity_onnx("BYTES")),
    ):
        client.push(name, artifact.content)
        client.deploy(f"{name}@1", traffic=100)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def client(node: Platform) -> Client:
    return node.client


@pytest.fixture
def wire(client: Client) -> Wire:
    return Wire(client)


@pytest.fixture(autouse=True)
def neighbour(wire: Wire) -> Iterator[None]:
    """Whatever a test does, a model in another process answers every request of another connection."""
    with answering_throughout(wire, "/v2/models/neighbour/infer"):
        yield
    assert wire.post(OK).values == [1.0]


def deep(where: str) -> bytes:
    return OK[:-1] + b", " + where.encode() + b"[" * DEEP + b"]" * DEEP + b"}" * (1 + where.count("{"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (OK + b"}", "not JSON"),
        (OK[:-1], "not JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b"\xff\xfe" + OK, "not JSON"),
        (OK.replace(b'"x"', b'"\xff"'), "not JSON"),
        (OK.replace(b'"x"', b'"\\ud800"'), "not JSON"),
        (infer([[float("nan")]]), "not JSON"),
        (infer([[None]]), "must be finite"),
        (infer([[1e39]]), "must be finite FP32"),
        (infer([1e39]), "must be finite numbers that fit FP32"),
        (infer([[1.0]]).replace(b"1.0", b"1e400"), "out of range"),
        (infer([[10**300]]), "must be finite FP32"),
        (infer([[1.0]]).replace(b"1.0", b"9" * 10_000), "out of range"),
        (infer([["1"]]), "item 0 is a string, expected FP32"),
        (infer([[True]]), "item 0 is a boolean, expected FP32"),
        (infer([[1.0], [1.0, 2.0]]), "not a regular array"),
        (infer([[1.0]], [10**30, 1]), "1 values, shape"),
        (infer([[1.0]], [-1, 1]), "shape [-1, 1], expected [-1, 1]"),
        (infer([[1.0]], [0, 1]), "shape [0, 1]"),
        (infer([[1.0]], [1]), "shape [1], expected [-1, 1]"),
        (infer([[1.0]], name="z"), "unknown input 'z', the model takes 'x'"),
        (infer([[1.0]], datatype="FP99"), "datatype 'FP99', expected FP32"),
        (infer([[1.0]], id=7), "id: Expected `str`, got `int`"),
        (infer([[1.0]], parameters=7), "parameters: Expected `object | null`, got `int`"),
        (infer([[1.0]], outputs=[{}]), "outputs[0]: Object missing required field `name`"),
        (infer([[1.0]], parameters={"sequence_id": 3}), "sequences are not supported"),
        (infer([[1.0]]).replace(b"[[1.0]]", b"[" * DEEP + b"]" * DEEP), "not JSON: maximum recursion depth"),
        (deep('"id": '), "id: Expected `str`, got `array`"),
        (deep('"unknown": '), "not JSON: maximum recursion depth"),
        (deep('"parameters": {"a": '), "not JSON: maximum recursion depth"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_body_that_is_wrong_is_told_what_is_wrong(wire: Wire, body: bytes, says: str) -> None:
    reply = wire.post(body)
    assert (reply.status, says in reply.error) == (400, True), reply.error


def test_of_duplicate_keys_the_last_one_counts_as_in_any_json(wire: Wire) -> None:
    assert wire.post(OK.replace(b'"data": [[1.0]]', b'"data": [[1.0]], "data": [[2.0]]')).values == [2.0]


def test_a_bad_row_fails_alone_among_those_that_share_its_batch(wire: Wire) -> None:
    bodies = [
        infer([[float(k)]]) if k % 5 else [infer([[1e39]]), infer([[None]]), deep('"id": ')][k % 3] for k in range(60)
    ]
    asked = b"".join(wire.request(body) for body in bodies[:-1])
    answers = wire.wait(asked + wire.request(bodies[-1], "Connection: close"))
    assert len(answers) == 60
    for k, reply in enumerate(answers):
        if k % 5:
            assert reply.values == [float(k)]
        else:
            assert reply.status == 400 and reply.error


def binary(
    sizes: int, data: bytes, shape: object = (1, 1), datatype: str = "FP32", name: str = "x"
) -> tuple[bytes, str]:
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": sizes}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + data, f"Inference-Header-Content-Length: {len(head)}"


@pytest.mark.parametrize(
    ("body", "line", "says"),
    [
        (*binary(8, bytes(4)), "8 bytes announced, the body has 4 left"),
        (*binary(4, bytes(8)), "4 bytes follow the last announced tensor"),
        (*binary(8, bytes(8)), "8 bytes of data, shape [1, 1] needs 4"),
        (*binary(-4, bytes(4)), "binary_data_size needs"),
        (*binary(10**30, bytes(4)), "bytes announced, the body has 4 left"),
        (*binary(4, bytes(4), shape=[10**12, 1]), "needs 4000000000000"),
        (*binary(4, b"\x00\x00\xc0\x7f"), "must be finite"),
        (OK, "Inference-Header-Content-Length: -1", "Inference-Header-Content-Length"),
        (OK, "Inference-Header-Content-Length: many", "Inference-Header-Content-Length"),
        (OK, f"Inference-Header-Content-Length: {len(OK) + 1}", "outside the body"),
        (OK, f"Inference-Header-Content-Length: {len(OK) - 1}", "not JSON"),
        (OK, f"Inference-Header-Content-Length: {10**30}", "Inference-Header-Content-Length"),
        (OK, f"Inference-Header-Content-Length: {'9' * 10_000}", "Inference-Header-Content-Length"),
        (bytes(7), "Inference-Header-Content-Length: 0", "no whole number of FP32"),
        (b"", "Inference-Header-Content-Length: 0", "do not fill the shape"),
        (binary(4, bytes(4))[0], "Accept: */*", "not JSON"),
        (OK, "X-Request-Timeout-Ms: 0", "no positive whole number"),
        (OK, "X-Request-Timeout-Ms: -5", "no positive whole number"),
        (OK, "X-Request-Timeout-Ms: \xb2", "no positive whole number"),
        (OK, f"X-Request-Timeout-Ms: {'9' * 10_000}", "x-request-timeout-ms"),
        (OK, "Content-Encoding: gzip", "not whole, or not what content-encoding says"),
        (gzip.compress(OK)[:-9], "Content-Encoding: gzip", "not whole"),
        (gzip.compress(OK)[:-3] + b"abc", "Content-Encoding: gzip", "not whole"),
        (zlib.compress(OK)[:-5], "Content-Encoding: deflate", "not whole"),
        (gzip.compress(b"{"), "Content-Encoding: gzip", "not JSON"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_headers_that_lie_are_told_so(wire: Wire, body: bytes, line: str, says: str) -> None:
    reply = wire.post(body, line)
    assert (reply.status, says in reply.error) == (400, True), reply.error


@pytest.mark.parametrize(
    ("sizes", "data", "shape"),
    [(8, bytes(8), [10**12, 2]), (8, b"\xff\xff\xff\xff1234", [1, 2]), (3, bytes(3), [1, 2]), (0, b"", [1, 2])],
)
def test_texts_whose_lengths_lie(wire: Wire, sizes: int, data: bytes, shape: list[int]) -> None:
    body, line = binary(sizes, data, shape, "BYTES", "BYTES")
    reply = wire.post(body, line, path="/v2/models/texts/infer")
    assert (reply.status, "length-prefixed items" in reply.error) == (400, True), reply.error


def test_a_bomb_is_refused_before_it_goes_off(wire: Wire) -> None:
    bomb = gzip.compress(bytes(300 << 20), 9)
    reply = wire.post(bomb, "Content-Encoding: gzip")
    assert (reply.status, "grows past" in reply.error) == (413, True), reply.error


def test_a_body_larger_than_the_model_takes(client: Client, wire: Wire) -> None:
    client.call(calls.update_model("echo", ModelUpdate(body_max_bytes=1000)))
    try:
        reply = wire.post(infer([[1.0]], id="x" * 1000))
        assert (reply.status, "at most 1000" in reply.error) == (413, True), reply.error
    finally:
        client.call(calls.update_model("echo", ModelUpdate(body_max_bytes=64 << 20)))


@pytest.mark.parametrize(
    ("path", "method", "status", "says"),
    [
        ("/v2/models/nothing/infer", "POST", 404, "model 'nothing' does not exist"),
        ("/v2/models/echo/versions/7/infer", "POST", 404, "no deployed version '7'"),
        (f"/v2/models/echo/versions/{'9' * 5000}/infer", "POST", 404, "no deployed version"),
        ("/v2/models/echo/versions/%C2%B2/infer", "POST", 404, "no deployed version"),
        ("/v2/models/echo/versions", "GET", 404, "no deployed version ''"),
        ("/v2/models/echo/nothing", "GET", 404, "no such path"),
        ("/v2/models", "GET", 404, "no such path"),
        ("/v2/models/", "GET", 404, "no such path"),
        ("/v2/repository", "POST", 404, "no such path"),
        ("/v2/models/%ff/infer", "POST", 404, "does not exist"),
        ("/v2/models/..%2f..%2fetc/infer", "POST", 404, "does not exist"),
        ("//[/v2", "GET", 400, "URL"),
        ("*", "OPTIONS", 404, "no such path"),
        ("/", "GET", 404, "no such path"),
        ("/v2/models/echo/infer", "GET", 405, "use POST"),
        ("/v2/models/echo/infer", "DELETE", 405, "use POST"),
        ("/v2/models/echo", "PUT", 405, "use GET"),
        ("/v2/health/live", "POST", 405, "use GET"),
    ],
)
def test_paths_and_methods_that_are_not_there(wire: Wire, path: str, method: str, status: int, says: str) -> None:
    reply = wire.ask(wire.head("Connection: close", path=path, method=method) + b"Content-Length: 0\r\n\r\n")
    assert (reply.status, says in reply.error) == (status, True), (reply.status, reply.error)


def test_a_repository_request_that_is_no_object(wire: Wire) -> None:
    for body in (b"{", b"[]", b"7", b"[" * DEEP + b"]" * DEEP, b"\xff"):
        reply = wire.post(body, path="/v2/repository/index")
        assert (reply.status, "JSON object" in reply.error) == (400, True), reply.error


def test_wrong_keys_and_another_tenants_model(client: Client, wire: Wire) -> None:
    client.call(calls.create_tenant("foreign", Quota(1e6, 1e6, 1000)))
    foreign = client.call(calls.create_key("admin", "foreign")).result.text
    for key, status, says in (
        ("", 401, "no API key"),
        (wire.key[:-1], 401, "no API key"),
        (wire.key + "x", 401, "no API key"),
        ("\xff" * 100, 401, "no API key"),
        (foreign, 403, "another tenant"),
    ):
        stranger = Wire(client)
        stranger.key = key
        reply = stranger.post(OK)
        assert (reply.status, says in reply.error) == (status, True), reply.error


def only(reply: list[Reply]) -> Reply:
    assert len(reply) == 1, reply
    return reply[0]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01 rubbish\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # the first bytes of a TLS handshake
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"BREW /v2 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nx: a\x00b\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: ten\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:60]),
)
def test_what_is_no_http_is_refused_and_the_connection_closed(wire: Wire, sent: bytes) -> None:
    reply = wire.ask(sent)
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert "malformed HTTP" in reply.error


def test_a_flood_of_headers(wire: Wire) -> None:
    for flood in (b"x: " + b"y" * 40_000, b"x: y\r\n" * 20_000, b"a" * 40_000 + b": y"):
        reply = wire.ask(wire.head()[:-2] + b"\r\n", flood)
        assert (reply.status, reply.headers["connection"]) == (431, "close")
        assert "32 KiB" in reply.error
    reply = wire.ask(b"GET /" + b"u" * 40_000)
    assert reply.status == 431


def test_chunks_are_a_body_like_any_other(wire: Wire) -> None:
    chunks = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in OK) + b"0\r\n\r\n"
    pieces = [chunks[k : k + 7] for k in range(0, len(chunks), 7)]
    reply = wire.ask(wire.head("Connection: close", "Transfer-Encoding: chunked") + b"\r\n", *pieces)
    assert reply.values == [1.0]


def test_a_content_length_too_short_spoils_what_follows_and_nothing_before(wire: Wire) -> None:
    good, bad = wire.request(OK), wire.head("Content-Length: 5") + b"\r\n" + OK
    answers = wire.wait(good + bad + good)
    assert [reply.status for reply in answers] == [200, 400, 400]
    assert answers[0].values == [1.0] and "not JSON" in answers[1].error and "malformed HTTP" in answers[2].error


def test_many_requests_in_one_write_are_no_flood(wire: Wire) -> None:
    good = [wire.request(infer([[float(k)]])) for k in range(2000)]
    answers = wire.wait(b"".join(good[:-1]), wire.request(infer([[1999.0]]), "Connection: close"))
    assert [reply.values for reply in answers] == [[float(k)] for k in range(2000)]


def test_rubbish_behind_good_requests_leaves_these_answered_in_order(wire: Wire) -> None:
    good = b"".join(wire.request(infer([[float(k)]])) for k in range(50))
    answers = wire.wait(good + b"\x00\x01\x02 rubbish \r\n\r\n" * 100)
    assert [reply.values for reply in answers[:-1]] == [[float(k)] for k in range(50)]
    assert (answers[-1].status, answers[-1].headers["connection"]) == (400, "close")


def test_an_upgrade_that_is_offered_is_not_taken(wire: Wire) -> None:
    """Java's HttpClient offers HTTP/2 with every first request: it is answered as if it had not."""
    answers = wire.wait(
        wire.request(OK, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    )
    assert only(answers).values == [1.0]
    answers = wire.wait(
        wire.head("Connection: Upgrade", "Upgrade: h2c", path="/v2/health/live", method="GET") + b"\r\n"
    )
    assert only(answers).status == 200


def test_expect_100_is_answered_first(wire: Wire) -> None:
    with wire.connect() as connection:
        connection.sendall(wire.head(f"Content-Length: {len(OK)}", "Expect: 100-continue") + b"\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(OK)
        assert b"200 OK" in connection.recv(1000)


SILENT: dict[str, Callable[[Wire], bytes]] = {
    "half a request line": lambda wire: b"POST /v2/mo",
    "half a head": lambda wire: wire.head(),
    "no body": lambda wire: wire.head("Content-Length: 50") + b"\r\n",
    "half a body": lambda wire: wire.request(OK)[:-5],
    "half a chunk": lambda wire: wire.head("Transfer-Encoding: chunked") + b"\r\n5\r\nab",
    "no last chunk": lambda wire: wire.head("Transfer-Encoding: chunked") + b"\r\n2\r\nab\r\n",
    "behind a good one": lambda wire: wire.request(OK) + wire.head(),
}


@pytest.mark.parametrize("name", SILENT)
def test_half_a_request_and_silence(wire: Wire, name: str) -> None:
    started = time.monotonic()
    answers = wire.wait(SILENT[name](wire))
    taken = time.monotonic() - started
    assert HEADER_TIMEOUT_S < taken < HEADER_TIMEOUT_S + 10
    if name == "behind a good one":
        assert answers.pop(0).values == [1.0]
    reply = only(answers)
    assert (reply.status, reply.headers["connection"]) == (408, "close")
    assert "in time" in reply.error


def test_headers_that_drip_are_no_sign_of_life(wire: Wire) -> None:
    """Slow loris: a byte now and then does not put the time-out off."""
    with wire.connect() as connection:
        connection.sendall(wire.head())
        connection.settimeout(HEADER_TIMEOUT_S / 6)
        answer = b""
        end = time.monotonic() + 15
        while not answer:
            assert time.monotonic() < end, "it drips for ever"
            connection.sendall(b"x")
            try:
                answer = connection.recv(1000)
            except TimeoutError:
                continue
    assert b" 408 " in answer


def test_a_connection_that_says_nothing_is_closed(wire: Wire) -> None:
    assert wire.wait() == []
    assert wire.ask(wire.request(OK)).values == [1.0]


def test_a_client_that_does_not_read_is_not_read_from_either(wire: Wire) -> None:
    """Answers wait in the client's socket, not in the router's memory."""
    one = (wire.head(path="/v2/models/echo", method="GET") + b"\r\n") * 1000
    with wire.connect() as connection:
        connection.settimeout(1.0)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256 << 20:
                sent += connection.send(one)


def test_answers_that_wait_for_an_earlier_one_are_bounded(client: Client, wire: Wire, tmp_path: Path) -> None:
    client.push("slow", models.slow(1.5).named(tmp_path))
    client.deploy("slow@1", traffic=100)
    one = wire.head(path="/nothing", method="GET") + b"\r\n"
    with wire.connect() as connection:
        connection.sendall(wire.request(OK, path="/v2/models/slow/infer"))
        connection.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256 << 20:
                sent += connection.send(one * 1000)
        connection.settimeout(20)
        answers = replies(connection)
        assert next(answers).values == [1.0]
        assert [next(answers).status for _ in range(1000)] == [404] * 1000
