"""No reply ever reaches another caller, whatever else happens: 100,000 requests whose answers encode who asked what,
pipelined over many connections through a real router to several replicas; of mixed sizes and forms, bad ones among
them, callers that leave without reading, and a replica killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import struct

import pytest

from headrace.client import calls
from headrace.client.client import Client
from headrace.core.resources import TenantUpdate
from tests import models
from tests.polling import until

CALLERS, BURSTS, BURST = 40, 100, 25
LEAVERS = 8
SEED = random.randrange(1 << 32)
BAD = [b"[1e39]", b"[1.0, 2.0]", b"[NaN]", b'["1"]', b"[null]", b"1"]


class Asked:
    """One request: its number is in its id and in every row."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self.number = number
        self.rows = chance.randint(1, 5)
        self.form = chance.choices(["json", "nested", "binary", "bad"], [10, 3, 3, 1])[0]
        self.values = [number + k / 8 for k in range(self.rows)]
        self.bad = chance.choice(BAD)

    def bytes(self, key: str) -> bytes:
        shape = b'{"id":"%d","inputs":[{"name":"x","datatype":"FP32","shape":[%d,1],' % (self.number, self.rows)
        lines, tail = b"", b""
        if self.form == "binary":
            tail = struct.pack(f"<{self.rows}f", *self.values)
            text = shape + b'"parameters":{"binary_data_size":%d}}],"outputs":[{"name":"y"}]}' % len(tail)
            lines = b"Inference-Header-Content-Length: %d\r\n" % len(text)
        elif self.form == "bad":
            text = shape.replace(b"[%d,1]" % self.rows, b"[1,1]") + b'"data":' + self.bad + b"}]}"
        else:
            data: object = self.values if self.form == "json" else [[value] for value in self.values]
            text = shape + b'"data":' + json.dumps(data).encode() + b"}]}"
        head = b"POST /v2/models/callers/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key.encode()
        return head + b"\r\n%bContent-Length: %d\r\n\r\n" % (lines, len(text) + len(tail)) + text + tail

    def check(self, status: int, content: bytes) -> None:
        """Raises AssertionError unless this is the answer to this request."""
        reply = json.loads(content)
        if self.form == "bad":
            assert status == 400 and list(reply) == ["error"], (vars(self), status, reply)
            return
        assert status == 200, (vars(self), status, reply)
        assert reply["id"] == str(self.number), (vars(self), reply)
        assert reply["outputs"][0]["data"] == self.values, (vars(self), reply)


@pytest.fixture(scope="module")
def replicas(client: Client) -> list[int]:
    """Process ids of the three replicas of model ``callers``, which answers with what it is asked."""
    client.call(calls.update_tenant("default", TenantUpdate(None, 1e6, 1e6, 1_000_000)))
    version = client.push("callers", models.echo_onnx().content).result
    client.deploy(f"callers@{version.version}", replicas=3, traffic=100)
    until(lambda: client.call(calls.show_deployment("callers@1")).ready == 3, 60)
    return [one.pid for one in client.call(calls.show_deployment("callers@1")).instances]


def test_no_reply_ever_reaches_another_caller(client: Client, replicas: list[int]) -> None:
    print("seed", SEED)
    host, _, port = client.access.url.removeprefix("http://").rpartition(":")
    key = client.access.api_key or ""
    right = 0
    killed = False

    async def caller(who: int) -> None:
        nonlocal right, killed
        chance = random.Random(SEED + who)
        reader, writer = await asyncio.open_connection(host, int(port))
        for burst in range(BURSTS):
            first = (who * BURSTS + burst) * BURST
            asked = [Asked(first + k, chance) for k in range(BURST)]
            writer.write(b"".join([one.bytes(key) for one in asked]))
            for one in asked:
                one.check(*await answer(reader))
                right += 1
            if not killed and right >= CALLERS * BURSTS * BURST // 2:
                killed = True
                os.kill(replicas[0], signal.SIGKILL)
        writer.close()
        await writer.wait_closed()

    async def leaver(who: int) -> None:
        chance = random.Random(SEED - 1 - who)
        while right < CALLERS * BURSTS * BURST:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"".join([Asked(10**7 + k, chance).bytes(key) for k in range(chance.randint(1, 60))])[:-3])
            with contextlib.suppress(OSError):
                await writer.drain()
            await asyncio.sleep(0)
            writer.transport.abort()

    async def everybody() -> None:
        async with asyncio.TaskGroup() as group:
            for who in range(CALLERS):
                group.create_task(caller(who))
            for who in range(LEAVERS):
                group.create_task(leaver(who))

    asyncio.run(everybody())
    assert right == 100_000 and killed

    def replaced() -> bool:
        now = client.call(calls.show_deployment("callers@1"))
        return now.ready == 3 and replicas[0] not in [one.pid for one in now.instances]

    until(replaced, 60)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and content of the next response; where tensors follow the JSON, as JSON would have them."""
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines[1:-2])
    content = await reader.readexactly(int(fields[b"content-length"]))
    cut = int(fields.get(b"inference-header-content-length", len(content)))
    reply = json.loads(content[:cut])
    if cut < len(content):
        reply["outputs"][0]["data"] = [value for (value,) in struct.iter_unpack("<f", content[cut:])]
    return int(lines[0].split()[1]), json.dumps(reply).encode()
