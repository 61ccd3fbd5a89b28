"""The control plane's store: migrated at start, used in threads of its own, never from the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# Each part's tables must be known to the shared metadata before it is compared or created.
from headrace.controlplane import accounts, changes, leases, quarantine_store
from headrace.core.database import POOL_SIZE, connect, metadata, reading, transaction
from headrace.core.errors import InvalidInput, Unavailable
from headrace.deploy import store as deploy_store
from headrace.registry import inventory, jobs, lifecycle, lineage, references, search
from headrace.registry import parts as registry_parts
from headrace.registry import store as registry_store
from headrace.traffic import store as traffic_store

T = TypeVar("T")
log = logging.getLogger("headrace.controlplane.store")
TABLES = (
    accounts.tenants,
    changes.changes,
    leases.leases,
    quarantine_store.quarantine,
    deploy_store.deployments,
    inventory.artifacts,
    registry_parts.version_parts,
    registry_store.models,
    lifecycle.lifecycles,
    lineage.lineages,
    references.references,
    jobs.jobs,
    search.search_texts,
    traffic_store.policies,
)
"""One table of each module that has any."""
Kind = Callable[[Engine], AbstractContextManager[Connection]]
"""`transaction` or `reading`."""
LIMIT_S = 15.0
"""Longest that anybody waits for a transaction."""
NOTHING = "nothing was changed"
UNKNOWN = "whether it was changed is not known: look, or send it again under the same idempotency key"


def migration_config(engine: Engine) -> Config:
    """Alembic's configuration for our migrations on this engine."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["engine"] = engine
    config.attributes["metadata"] = metadata
    return config


def open_store(url: str) -> Engine:
    """Connect and bring the schema up to date. Raises Unavailable when the database cannot be reached, InvalidInput for
    a URL that makes no sense."""
    engine = connect(url)
    try:
        command.upgrade(migration_config(engine), "head")
    except DBAPIError as error:
        engine.dispose()
        raise Unavailable(f"the store cannot be used now: {error.orig}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


class Store:
    """Runs transactions in threads of its own: one for all that may write, and over PostgreSQL others for reading.

    Args:
        engine: of the database.
        limit_s: a transaction that has not ended by then is given up, and rolled back unless it is just committing.
    """

    def __init__(self, engine: Engine, limit_s: float = LIMIT_S) -> None:
        self.engine = engine
        self.embedded = engine.dialect.name == "sqlite"
        """The database is ours alone."""
        self._limit_s = limit_s
        self._writer = ThreadPoolExecutor(1, "store")
        self._readers = self._writer if self.embedded else ThreadPoolExecutor(POOL_SIZE - 1, "store-read")

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction that may write; committed (and synced) when this returns.

        Raises:
            Unavailable: the database cannot be reached or written; its message says whether anything was changed.
            InvalidInput: the database does not take a value.
        """
        return await self._submit(self._writer, work, transaction)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction that only reads: it waits for nobody who writes. Raises as `run`."""
        return await self._submit(self._readers, work, reading)

    async def _submit(self, threads: ThreadPoolExecutor, work: Callable[[Connection], T], kind: Kind) -> T:
        end = time.monotonic() + self._limit_s
        future = threads.submit(self._transact, work, kind, end)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limit_s)
        except TimeoutError:
            log.error("the store has not answered in %g s", self._limit_s)
            begun = kind is transaction and not future.cancelled()
            raise Unavailable(f"the store does not answer; {UNKNOWN if begun else NOTHING}") from None

    def _transact(self, work: Callable[[Connection], T], kind: Kind, end: float) -> T:
        committing = False
        try:
            with kind(self.engine) as connection:
                connection.info.pop(changes.WRITTEN, None)
                result = work(connection)
                written = connection.info.pop(changes.WRITTEN, None)
                if time.monotonic() > end:
                    raise Unavailable(f"the store took too long; {NOTHING}")  # nobody waits for it any more
                committing = kind is transaction
            if written is not None:  # an anchor of the audit's chain, outside of the store
                log.info("change %d", written[0], extra={"change": written[0], "hash": written[1]})
            return result
        except DataError as error:  # what SQLite keeps and PostgreSQL does not: NUL in a text, a number too large
            raise InvalidInput(f"a value cannot be stored: {error.orig}") from error
        except (OperationalError, InterfaceError, InternalError, PoolTimeout) as error:
            why = error.orig if isinstance(error, DBAPIError) else "all connections are busy"
            log.error("the store failed: %s", why)
            lost = committing and isinstance(error, DBAPIError) and error.connection_invalidated
            raise Unavailable(f"the store cannot be used now: {why}; {UNKNOWN if lost else NOTHING}") from error

    def close(self) -> None:
        """Finish what runs and close the connections."""
        for threads in (self._writer, self._readers):
            threads.shutdown(cancel_futures=True)
        self.engine.dispose()
