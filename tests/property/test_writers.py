"""Several processes write to one store while another reads: nobody's numbers collide, and no reader misses a change by
looking between two commits."""

from __future__ import annotations

import subprocess
import sys

from sqlalchemy import Connection, select

from headrace.controlplane import accounts, changes
from headrace.controlplane.chain import Link, Walk
from headrace.controlplane.routing_state import NOTHING, RoutingState, read
from headrace.controlplane.store import open_store
from headrace.core import revisions
from headrace.core.database import reading, transaction
from headrace.core.resources import Quota
from headrace.registry import store as registry

WRITERS, TRANSACTIONS = 4, 25
WRITER = f"""
import random, sys, time
from headrace.controlplane import accounts, changes
from headrace.controlplane.changes import Record
from headrace.core.database import connect, now, transaction
from headrace.core.signature import Signature
from headrace.core.specs import EngineOptions
from headrace.registry import store as registry
from headrace.registry.store import VersionRow

engine, who = connect(sys.argv[1]), sys.argv[2]
chance = random.Random(int(who))
for n in range({TRANSACTIONS}):
    with transaction(engine) as c:
        model = registry.ensure_model(c, 0, "shared").id
        number = (registry.latest_version(c, model) or 0) + 1
        changes.append(c, who, Record("version.register", "default", f"shared@{{number}}"), None)
        time.sleep(chance.random() / 200)  # numbers are drawn, and not committed yet
        row = (model, number, "onnx", "0" * 64, 1, "", Signature((), ()), EngineOptions(), {{}}, {{}}, "", now(), who)
        registry.add_version(c, VersionRow(*row))
        accounts.create_key(c, 0, "viewer", who)
        time.sleep(chance.random() / 200)
"""


class Reader:
    """Looks again and again, each time at what is new."""

    def __init__(self) -> None:
        self.revision = 0
        self.changes: list[int] = []
        self.state: RoutingState = NOTHING

    def look(self, c: Connection) -> None:
        numbers = [one.revision for one in revisions.since(c, self.revision)]
        assert numbers == list(range(self.revision + 1, self.revision + 1 + len(numbers))), "one was not to be seen yet"
        self.revision += len(numbers)
        last = self.changes[-1] if self.changes else 0
        found = select(changes.changes.c.id).where(changes.changes.c.id > last).order_by(changes.changes.c.id)
        self.changes += c.execute(found).scalars()
        self.state = read(c, self.state)


def test_what_several_processes_write_is_seen_whole_and_in_order(url: str) -> None:
    engine = open_store(url)
    with transaction(engine) as c:
        accounts.create_tenant(c, "default", Quota())
        registry.ensure_model(c, 0, "shared")
    command = [sys.executable, "-W", "error", "-c", WRITER, url]
    writers = [subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE, text=True) for n in range(WRITERS)]
    reader, looks = Reader(), 0
    try:
        while any(writer.poll() is None for writer in writers):
            with reading(engine) as c:
                reader.look(c)
            looks += 1
        for writer in writers:
            assert writer.returncode == 0, writer.communicate(timeout=10)[1]
        with reading(engine) as c:
            reader.look(c)
            total = WRITERS * TRANSACTIONS
            assert looks > 1 and len(reader.state.keys) == total == len(reader.changes) == len(set(reader.changes))
            assert reader.changes == list(range(1, total + 1)), "the audit's numbers have a gap"
            rows = [
                (Link(*row[:-1]), row.hash) for row in c.execute(select(changes.changes).order_by(changes.changes.c.id))
            ]
            assert Walk().over(rows) is None
            written = [changes.find(c, id_) for id_ in reader.changes]
            assert [one.entity for one in written if one] == [f"shared@{n}" for n in range(1, total + 1)]
            whole = read(c)
            assert (reader.state.keys, reader.state.models, reader.state.tenants) == (
                whole.keys,
                whole.models,
                whole.tenants,
            )
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
        engine.dispose()
