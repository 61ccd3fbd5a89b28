"""The store after kill -9 at a chosen moment: whole or as before, never in between."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from headrace.controlplane import accounts
from headrace.controlplane.store import open_store
from headrace.core.database import metadata, transaction


def die(source: str, *arguments: str) -> str:
    """Run a program that kills itself; what it had printed."""
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *arguments], capture_output=True, text=True, timeout=60
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    return child.stdout


@pytest.mark.parametrize("statement", [4, 9, 14, 18])
def test_a_migration_that_was_killed_is_made_whole_by_the_next_start(url: str, statement: int) -> None:
    die(
        """
        import os, signal, sys
        from sqlalchemy import Engine, event
        from headrace.controlplane.store import open_store

        left = int(sys.argv[2])

        @event.listens_for(Engine, "after_cursor_execute")
        def count(*_):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        open_store(sys.argv[1])
        """,
        url,
        str(statement),
    )
    engine = open_store(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_what_was_committed_survives_and_what_was_not_does_not(url: str) -> None:
    said = die(
        """
        import os, signal, sys
        from headrace.controlplane import accounts
        from headrace.controlplane.store import open_store
        from headrace.core.database import transaction
        from headrace.core.resources import Quota

        engine = open_store(sys.argv[1])
        with transaction(engine) as connection:
            accounts.create_tenant(connection, "kept", Quota())
        print("acknowledged", flush=True)
        with transaction(engine) as connection:
            accounts.create_tenant(connection, "lost", Quota())
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        url,
    )
    assert said == "acknowledged\n"
    engine = open_store(url)
    with transaction(engine) as connection:
        assert [tenant.name for tenant in accounts.list_tenants(connection)] == ["kept"]
    engine.dispose()
