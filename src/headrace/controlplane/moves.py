"""Versions are moved between shared processes and replicas of their own: `deploy.promote` decides by what routers
report, here it is written down. The deployment manager then makes it so, the new place before the old."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import Connection

from headrace.controlplane import changes
from headrace.controlplane.changes import Record
from headrace.controlplane.loop import Manager
from headrace.controlplane.publisher import Guard
from headrace.controlplane.store import Store
from headrace.core.errors import HeadraceError
from headrace.core.report import RouterReport
from headrace.core.specs import Packing
from headrace.deploy import store as deploy_store
from headrace.deploy.promote import FAULTS_MAX, Load, Move, isolate, judge
from headrace.deploy.reconcile import Target
from headrace.deploy.store import Desired

LOOK_S = 1.0
ACTIONS = {"dedicated": "deployment.promote", "shared": "deployment.demote", "isolated": "deployment.isolate"}
log = logging.getLogger("headrace.deploy.moves")


class Moves:
    """Looks each second.

    Args:
        store: where deployments are.
        manager: knows them, and carries out what is decided.
        limits: thresholds.
        replicas_max: how many replicas all deployments together may want.
        guard: raises in a transaction where another control plane leads by now.
    """

    def __init__(self, store: Store, manager: Manager, limits: Packing, replicas_max: int, guard: Guard) -> None:
        self._store = store
        self._manager = manager
        self._limits = limits
        self._replicas_max = replicas_max
        self._guard = guard
        self._counts: dict[Target, int] = {}
        self._loads: dict[Target, Load] = {}
        self._condemned: set[bytes] = set()
        """Digests of inputs that were taken note of: routers tell of them again and again."""

    def take(self, report: RouterReport) -> None:
        """Count a router's requests. An input that it has condemned has ended two processes, alone the second time."""
        for cell in report.cells:
            key = cell.model, cell.version
            self._counts[key] = self._counts.get(key, 0) + cell.latency.count + sum(cell.errors.values())
        for one in report.condemned:
            if one.digest not in self._condemned:
                self._condemned.add(one.digest)
                self._manager.packs.blame((one.model, one.version), FAULTS_MAX)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look(asyncio.get_running_loop().time())
            except HeadraceError as error:
                log.warning("nothing is promoted or demoted: %s", error.message)
            except Exception:
                log.exception("promotion and demotion failed")

    async def look(self, now: float) -> None:
        """Decide for every deployment that may be moved, and write down what follows."""
        counts, self._counts = self._counts, {}
        packs = self._manager.packs
        auto = {target for target, (_, one) in packs.deployments.items() if one.mode == "auto"}
        self._loads = {target: self._loads.get(target) or Load() for target in auto}
        due: list[tuple[Target, Desired, Move]] = []
        for target, load in self._loads.items():
            load.observe(counts.get(target, 0), now, self._limits)
            one = packs.deployments[target][1]
            if one.replicas and (move := judge(one.placed, load, now, self._limits)) is not None:
                due.append((target, one, move))
        for target, faults in packs.faults.items():
            if target in packs.deployments:
                one = packs.deployments[target][1]
                if (move := isolate(one.placed, faults)) is not None:
                    due.append((target, one, move))
        if due:
            await self._store.run(lambda c: self._write(c, due))
            self._manager.wake()

    def _write(self, connection: Connection, due: list[tuple[Target, Desired, Move]]) -> None:
        self._guard(connection)
        for (model, version), seen, move in due:
            one = deploy_store.find(connection, seen.model, version)
            if one is None or (one.mode, one.placed, one.revision) != (seen.mode, seen.placed, seen.revision):
                continue  # somebody was quicker
            wanted = deploy_store.replicas_wanted(connection) + one.replicas
            if move.placed != "shared" and wanted > self._replicas_max:
                log.warning("%s@%d stays shared: replicas_max is %d", model, version, self._replicas_max)
                continue
            deploy_store.place(connection, one, move.placed, move.why)
            tenant, _, name = model.partition("/")
            entity = f"{name}@{version}"
            undo = f"headrace deploy {entity} --mode {'shared' if one.placed == 'shared' else 'dedicated'}"
            before, after = {"placed": one.placed}, {"placed": move.placed}
            record = Record(ACTIONS[move.placed], tenant, entity, before, after, undo)
            changes.append(connection, changes.PLATFORM, record, move.why)
        for target, _, move in due:
            if move.placed == "isolated":
                self._manager.packs.faults.pop(target, None)
