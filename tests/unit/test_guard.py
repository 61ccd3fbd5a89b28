"""What a request is known by when its replica has died, and what a guard does with it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from headrace.core import frames, meta
from headrace.core.snapshot import Quarantined
from headrace.core.telemetry import Durations
from headrace.router.guard import SUSPECTS_MAX, Guard, Guards, digest_of
from headrace.router.link import Arm, Tenant, Waiting

ARM = Arm("default/m", 1)


def json_body(id_: str, data: str = "[1.0]") -> bytes:
    return (
        f'{{"id": "{id_}", "inputs": [{{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": {data}}}]}}'.encode()
    )


def known_by(body: bytes, flags: int = 0, json_length: int = -1, arm: Arm = ARM) -> bytes:
    half = len(body) // 2
    return digest_of(arm, meta.encode((1, json_length, b"")), [body[:half], body[half:]], flags)


def test_a_digest_is_of_version_and_inputs_and_not_of_the_requests_id() -> None:
    assert known_by(json_body("1")) == known_by(json_body("2"))
    assert known_by(json_body("1")) != known_by(json_body("1", "[2.0]"))
    assert known_by(json_body("1")) != known_by(json_body("1"), arm=Arm("default/m", 2))
    tensors = b"\0\0\x80\x3f"
    binary = [json_body(id_) + tensors for id_ in "12"]
    first, second = (known_by(body, frames.BINARY, len(body) - len(tensors)) for body in binary)
    assert first == second
    assert first != known_by(binary[0][:-1] + b"\x40", frames.BINARY, len(binary[0]) - len(tensors))


@pytest.mark.parametrize("body", [b"", b"not JSON", b"[]", b'{"id": 1}'])
def test_what_is_no_plain_request_is_known_by_its_bytes(body: bytes) -> None:
    assert known_by(body) != known_by(body + b" ")
    assert known_by(json_body("1"), frames.GZIP) != known_by(json_body("2"), frames.GZIP)


@dataclass
class Caller:
    """A client that notes its answers."""

    gone: bool = False
    told: list[tuple[int, str]] = field(default_factory=list)

    def answer(self, seq: int, kind: int, flags: int, status: int, meta: bytes, body: bytes) -> None:
        self.told.append((status, body.decode()))

    def fail(self, seq: int, status: int, reason: str) -> None:
        self.told.append((status, reason))


def request(arm: Arm, tenant: Tenant, caller: Caller, body: bytes, timeout_s: float = 60.0) -> Waiting:
    now = time.monotonic()
    tenant.in_flight += 1
    context = meta.encode((1, -1, b""))
    return (caller, 0, Durations(), tenant, now, now + timeout_s, arm, context, [body], 0, 0)


def test_what_the_snapshot_says_is_refused_until_its_time_is_over_and_no_longer_looked_at_once_lifted() -> None:
    guards, arm, tenant, caller = Guards(), Arm("default/m", 1), Tenant(0, "default"), Caller()
    digest = known_by(json_body("1"), arm=arm)
    guards.told(arm, ())
    assert arm.guard is None
    guards.told(arm, (Quarantined(digest, time.time() + 60),))
    assert arm.guard is not None
    assert arm.guard.stops(request(arm, tenant, caller, json_body("7")))
    ((status, text),) = caller.told
    assert status == 422 and f"headrace quarantine lift m@1 {digest.hex()}" in text
    assert (tenant.in_flight, arm.errors) == (0, {(0, 422): 1})
    assert not arm.guard.stops(request(arm, tenant, caller, json_body("7", "[2.0]")))
    guards.told(arm, (Quarantined(digest, time.time() - 1),))
    assert not arm.guard.stops(request(arm, tenant, caller, json_body("7")))
    guards.told(arm, ())
    guards.sweep(time.monotonic())
    assert arm.guard is None


def test_a_suspect_waits_for_a_replica_and_is_told_when_its_time_is_over() -> None:
    guards, arm, tenant, caller = Guards(), Arm("default/m", 1), Tenant(0, "default"), Caller()
    guard = guards.of(arm)
    guard.suspect(known_by(json_body("1"), arm=arm), time.monotonic())
    assert guard.stops(request(arm, tenant, caller, json_body("2"), timeout_s=10.0))
    guards.sweep(time.monotonic())
    assert (caller.told, tenant.in_flight) == ([], 1)
    guards.sweep(time.monotonic() + 11.0)
    assert [status for status, _ in caller.told] == [504]
    assert tenant.in_flight == 0 and arm.guard is guard
    guards.sweep(time.monotonic() + 601.0)
    assert arm.guard is None


def test_what_a_guard_remembers_is_bounded() -> None:
    guard = Guard(Arm("default/m", 1))
    for number in range(SUSPECTS_MAX + 10):
        guard.suspect(number.to_bytes(16, "little"), 0.0)
    assert len(guard.suspects) == SUSPECTS_MAX
    assert (5).to_bytes(16, "little") not in guard.suspects
