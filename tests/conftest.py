"""Fixtures shared by all tests: a real platform, started once per test process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from headrace.client.client import Client
from headrace.client.serve import Platform
from tests import models
from tests.postgres import PostgresServer

settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests that do not halt it."""
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Makes databases with nothing in them: the URL of another at each call. What uses it runs on either kind."""
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.new_database
    return lambda: f"sqlite:///{tmp_path_factory.mktemp('database') / 'headrace.db'}"


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    """An empty database."""
    return new_database()


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform on free ports, with its admin's client."""
    started = Platform(str(tmp_path_factory.mktemp("platform")), grpc=True)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def client(platform: Platform) -> Client:
    """The admin's client."""
    return platform.client


@pytest.fixture(scope="session")
def echo(client: Client) -> str:
    """A deployed model that answers with what it is asked."""
    version = client.push("echo", models.echo_onnx().content).result
    client.deploy(f"echo@{version.version}", traffic=100)
    return "echo"
