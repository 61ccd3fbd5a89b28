"""PostgreSQL goes away, hangs, or keeps somebody waiting: it is told, nothing is half done, predictions go on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.controlplane import accounts
from headrace.controlplane.store import NOTHING, UNKNOWN, Store, open_store
from headrace.core.database import connect, transaction
from headrace.core.errors import InvalidInput, Unavailable
from headrace.core.resources import Quota
from tests import models
from tests.integration.wire import Wire, answering_throughout
from tests.polling import until
from tests.postgres import PostgresServer


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that the test may halt."""
    started = PostgresServer()
    yield started
    started.stop()


def api(client: Client, method: str, path: str, json: object = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {client.access.api_key}"}
    url = f"{client.access.control_url}/api/v1{path}"
    return httpx.request(method, url, headers=headers, json=json, timeout=30)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_while_the_store_is_away_the_api_says_so_and_predictions_go_on(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setenv("HEADRACE_DATABASE", server.new_database())
    platform = Platform(str(tmp_path / "up"))
    try:
        client = platform.client
        client.push("echo", models.echo_onnx().content)
        client.deploy("echo@1", traffic=100)
        before = client.status()
        pids = [replica.pid for one in client.deployments.list().items for replica in one.instances]
        with answering_throughout(Wire(client), "/v2/models/echo/infer"):
            server.halt(how)
            for method, path, body in (
                ("GET", "/models", None),
                ("POST", "/tenants", {"name": "lost"}),
                ("PATCH", "/deployments/echo@1", {"replicas": 2}),
            ):
                refused = api(client, method, path, body)
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable"), refused.text
                assert "the store cannot be used now" in refused.json()["detail"] and "retry-after" in refused.headers
            control = platform.folder / "logs" / "control.log"
            until(lambda: control.read_text().count("the deployment manager waits") >= 2)
            server.start()
            until(lambda: api(client, "GET", "/models").status_code == 200)
            assert api(client, "GET", "/tenants/lost").status_code == 404
            made = api(client, "POST", "/tenants", {"name": "kept"})
            assert made.status_code == 201 and made.json()["change"]["effective"], made.text
        after = client.status()
        assert after.uptime_s > before.uptime_s, "the same process"
        assert [replica.pid for one in client.deployments.list().items for replica in one.instances] == pids
        assert after.models[0].serving == before.models[0].serving and after.epoch >= before.epoch
        assert "Traceback" not in control.read_text()
    finally:
        platform.stop()


@pytest.fixture
def store(postgres: PostgresServer) -> Iterator[Store]:
    """A store that gives up after half a second, over the shared server."""
    one = Store(open_store(postgres.new_database()), limit_s=0.5)
    yield one
    one.close()


Names = Callable[[Connection], list[str]]


def names(c: Connection) -> list[str]:
    return [tenant.name for tenant in accounts.list_tenants(c)]


def test_who_waits_too_long_is_told_and_what_he_asked_for_is_not_done_later(store: Store) -> None:
    said = []

    async def main() -> None:
        with transaction(store.engine):  # another writer, who takes his time
            calls = [store.run(lambda c, n=n: accounts.create_tenant(c, f"late{n}", Quota())) for n in range(8)]
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, Unavailable)
                said.append(UNKNOWN if UNKNOWN in error.message else NOTHING)
            assert await store.read(names) == [], "readers do not wait"
        assert await store.run(names) == []

    asyncio.run(main())
    assert sorted(said) == sorted([UNKNOWN] + [NOTHING] * 7), "one had begun"
    store.close()  # whatever was still under way has ended
    with transaction(store.engine) as c:
        assert names(c) == []


def test_a_writer_that_was_paused_holds_up_nobody_for_long(postgres: PostgresServer) -> None:
    engine = open_store(postgres.new_database())
    patient = Store(engine)

    async def other() -> None:
        await patient.run(lambda c: accounts.create_tenant(c, "second", Quota()))

    with pytest.raises(DBAPIError), transaction(engine) as c:
        accounts.create_tenant(c, "first", Quota())
        asyncio.run(other())  # in the middle of the first one's transaction, who says nothing meanwhile
        names(c)
    with transaction(engine) as c:
        assert names(c) == ["second"]
    patient.close()


def test_a_connection_lost_at_the_commit_leaves_it_open_what_was_done(postgres: PostgresServer) -> None:
    store = Store(open_store(postgres.new_database()))

    def work(c: Connection) -> None:
        accounts.create_tenant(c, "perhaps", Quota())
        pid = c.execute(text("SELECT pg_backend_pid()")).scalar()
        postgres.sql(f"SELECT pg_terminate_backend({pid}, 10000)")

    with pytest.raises(Unavailable) as caught:
        asyncio.run(store.run(work))
    assert UNKNOWN in caught.value.message
    assert asyncio.run(store.read(names)) == [], "the next one has a good connection"
    store.close()


def test_a_failure_before_the_commit_changes_nothing_and_says_so(postgres: PostgresServer) -> None:
    store = Store(open_store(postgres.new_database()))

    def work(c: Connection) -> list[str]:
        accounts.create_tenant(c, "lost", Quota())
        pid = c.execute(text("SELECT pg_backend_pid()")).scalar()
        postgres.sql(f"SELECT pg_terminate_backend({pid}, 10000)")
        return names(c)

    with pytest.raises(Unavailable) as caught:
        asyncio.run(store.run(work))
    assert NOTHING in caught.value.message
    assert asyncio.run(store.read(names)) == []
    store.close()


def test_what_the_database_does_not_keep_is_the_callers_fault(postgres: PostgresServer) -> None:
    store = Store(open_store(postgres.new_database()))
    with pytest.raises(InvalidInput, match="cannot be stored"):
        asyncio.run(store.run(lambda c: accounts.create_tenant(c, "a\0b", Quota())))
    with pytest.raises(Unavailable, match="read-only"):  # whoever says that he only reads
        asyncio.run(store.read(lambda c: accounts.create_tenant(c, "a", Quota())))
    store.close()


def test_a_database_that_is_not_there_or_not_ours_is_told_without_the_password(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HR_PG", "hunter2")
    url = postgres.url("nowhere").replace("headrace@", "headrace:${env:HR_PG}@")
    with pytest.raises(Unavailable, match='database "nowhere" does not exist') as caught:
        open_store(url)
    assert "hunter2" not in caught.value.message
    engine = connect(url)
    assert "hunter2" not in repr(engine) and engine.url.password == "hunter2"
    engine.dispose()
    assert os.environ["HR_PG"] == "hunter2"
