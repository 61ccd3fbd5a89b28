"""The control plane's store: migrated at start, used by one thread at a time, never from the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

# Each part's tables must be known to the shared metadata before it is compared or created.
from headrace.controlplane import accounts, changes, quarantine_store
from headrace.core.database import connect, metadata, transaction
from headrace.core.errors import Unavailable
from headrace.deploy import store as deploy_store
from headrace.registry import inventory
from headrace.registry import parts as registry_parts
from headrace.registry import store as registry_store
from headrace.traffic import store as traffic_store

T = TypeVar("T")
log = logging.getLogger("headrace.controlplane.store")
TABLES = (
    accounts.tenants,
    changes.changes,
    quarantine_store.quarantine,
    deploy_store.deployments,
    inventory.artifacts,
    registry_parts.version_parts,
    registry_store.models,
    traffic_store.policies,
)
"""One table of each module that has any."""


def migration_config(engine: Engine) -> Config:
    """Alembic's configuration for our migrations on this engine."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["engine"] = engine
    config.attributes["metadata"] = metadata
    return config


def open_store(url: str) -> Engine:
    """Connect and bring the schema up to date."""
    engine = connect(url)
    command.upgrade(migration_config(engine), "head")
    return engine


class Store:
    """Runs transactions in a thread of their own, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._thread = ThreadPoolExecutor(1, "store")

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction; committed (and synced) when this returns. Raises Unavailable, with nothing done,
        when the database cannot be reached or written."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def _transact(self, work: Callable[[Connection], T]) -> T:
        try:
            with transaction(self.engine) as connection:
                return work(connection)
        except OperationalError as error:
            log.error("the store failed: %s", error.orig)
            raise Unavailable(f"the store cannot be used now: {error.orig}; nothing was changed") from error

    def close(self) -> None:
        """Finish what runs and close the connections."""
        self._thread.shutdown()
        self.engine.dispose()
