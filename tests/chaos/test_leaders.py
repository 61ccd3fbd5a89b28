"""Several control planes on one PostgreSQL database: one leads, any answers, and who was deposed does nothing twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.controlplane import leases
from headrace.controlplane.store import open_store
from headrace.core.database import connect, reading, transaction
from headrace.deploy.local import LocalFleet
from headrace.deploy.node import NodeInfo
from tests import models
from tests.integration.wire import Wire, answering_throughout
from tests.polling import until
from tests.postgres import PostgresServer

FAILOVER_S = 10.0


class Pair:
    """A platform with two control planes."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.folder = folder
        self.platform = Platform(str(folder))
        self.admin = self.platform.client
        self.engine = connect(url)

    @property
    def info(self) -> NodeInfo:
        return msgspec.json.decode((self.folder / "node.json").read_bytes(), type=NodeInfo)

    def lease(self) -> leases.Lease:
        with reading(self.engine) as c:
            found = leases.current(c)
        assert found is not None
        return found

    def places(self) -> tuple[int, int]:
        """Which of the two leads, and which waits."""
        leader = self.info.control_urls.index(self.lease().url)
        return leader, 1 - leader

    def client(self, place: int) -> Client:
        access = self.admin.access
        return Client(access.url, access.api_key, self.info.control_urls[place])

    def answers(self, place: int) -> bool:
        """Whether a control plane carries out a change, and all routers follow."""
        headers = {"authorization": f"Bearer {self.admin.access.api_key}"}
        url = f"{self.info.control_urls[place]}/api/v1/models/echo"
        try:
            reply = httpx.patch(url, headers=headers, json={"description": str(time.monotonic())}, timeout=5)
        except httpx.HTTPError:
            return False
        return reply.status_code == 200 and bool(reply.json()["change"]["effective"])

    def instances(self, place: int) -> list[tuple[str, int]]:
        with self.client(place) as client:
            return sorted((one.id, one.pid) for d in client.deployments.list().items for one in d.instances)


@pytest.fixture
def pair(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """With model ``echo``, versions 1 (which serves) and 2."""
    url = postgres.new_database()
    monkeypatch.setenv("HEADRACE_DATABASE", url)
    monkeypatch.setenv("HEADRACE_CONTROL_PLANES", "2")
    one = Pair(tmp_path / "up", url)
    try:
        for batch_max in (8, 16):
            one.admin.push("echo", models.echo_onnx().content, batch_max=batch_max)
        one.admin.deploy("echo@1", traffic=100)
        yield one
    finally:
        one.platform.stop()
        one.engine.dispose()


def test_either_answers_reads_and_writes_as_the_one_that_leads(pair: Pair) -> None:
    leader, other = pair.places()
    with pair.client(other) as client:
        made = client.tenants.create("risk")
        assert made.change.effective and [t.name for t in client.tenants.list().items] == ["default", "risk"]
        assert client.status().deployments[0].state == "ready" and pair.instances(other) == pair.instances(leader)
        version = client.push("second", models.echo_onnx(1.0).content).result
        assert client.deploy(f"second@{version.version}", traffic=100).traffic_percent == 100
    assert httpx.get(f"{pair.info.control_urls[other]}/healthz").status_code == 200
    missing = httpx.get(f"{pair.info.control_urls[other]}/api/v1/models", timeout=20)
    assert (missing.status_code, missing.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_leader_killed_or_paused_in_a_swap_is_followed_and_nobodys_request_is_lost(
    pair: Pair, how: signal.Signals
) -> None:
    leader, other = pair.places()
    token, pid = pair.lease().token, pair.info.control_pids[leader]
    before = pair.instances(leader)
    with answering_throughout(Wire(pair.admin), "/v2/models/echo/infer"):
        with pair.client(leader) as client:
            client.deployments.create("echo@2", traffic=100, wait=False)
        os.kill(pid, how)
        until(lambda: pair.answers(other), FAILOVER_S)
        assert pair.lease().token > token
        with pair.client(other) as client:
            # The new leader goes on where the old one was: version 2 takes over, version 1 stays for a rollback.
            until(lambda: client.traffic.show("echo").weights == {"2": 100.0})
            done = [(c.actor, c.action, c.entity) for c in client.changes(limit=1000).items]
    until(lambda: pid not in pair.info.control_pids)  # a paused one was ended, for it held the routers' connections
    assert set(before) < set(pair.instances(other)) and len(pair.instances(other)) == 2
    assert done.count(("platform", "traffic.set", "echo")) == 2, "each version's share was given once"
    assert len(list((pair.folder / "logs").glob("echo-2-*.log"))) == 1, "one replica was asked for, and one was started"


def test_who_was_deposed_is_heard_neither_by_the_store_nor_by_the_node(pair: Pair) -> None:
    leader, other = pair.places()
    old = pair.lease()
    with transaction(pair.engine) as c:
        leases.give_up(c, old.token)
        new = leases.take(c, "another", pair.info.control_urls[other])
        assert new.token > old.token
        with pytest.raises(leases.Deposed):
            leases.renew(c, old.token)
    # Its process finds out by itself, and ends; the lease of the other, which nobody renews, is over after a while.
    before = pair.info.control_pids[leader]
    until(lambda: pair.info.control_pids[leader] != before)
    until(lambda: pair.answers(other), FAILOVER_S + leases.LEASE_S)

    async def stop_all(token: int) -> None:
        """As a leader of long ago, who has just woken up."""
        fleet = LocalFleet(f"unix:{pair.folder / 'run' / 'node.sock'}")
        await fleet.open("control", token)
        for status in fleet.statuses():
            await fleet.stop(status.spec.id)
        await fleet.close()

    running = pair.instances(other)
    asyncio.run(stop_all(old.token))
    assert pair.answers(other) and pair.instances(other) == running, "nobody obeyed"


def test_a_lease_has_one_holder_and_each_holder_a_higher_token(url: str) -> None:
    engine = open_store(url)
    with transaction(engine) as c:
        assert leases.current(c) is None
        first = leases.take(c, "a", "http://a")
        assert (first.holder, leases.take(c, "b", "http://b").token) == ("a", first.token), "it is taken"
        leases.renew(c, first.token)
        again = leases.take(c, "a", "http://a")
        assert again.token > first.token, "a process that has started again is another"
        with pytest.raises(leases.Deposed):
            leases.check(c, first.token)
        leases.give_up(c, first.token)
        assert leases.take(c, "b", "http://b").holder == "a", "who does not hold it cannot give it up"
        leases.give_up(c, again.token)
        then = leases.take(c, "b", "http://b")
        assert then.holder == "b" and then.token > again.token and 0 < then.left_s <= leases.LEASE_S
        found = leases.current(c)
        assert found is not None and found.token == then.token and 0 < found.left_s <= leases.LEASE_S
        assert leases.take(c, "c", "http://c", alone=True).holder == "c"
    engine.dispose()
