"""Use cases of optimisation: a job is queued, runs in a process of its own, and its end is one transaction.

That transaction writes the new version together with the job's end, so there is never half of it: a job that was cut
off at any line is found `running` by the next leader, and runs again from its beginning; what it had put into the
artifact store without a version is collected like any other artifact that nobody needs.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Connection

from headrace.controlplane import accounts, changes, composing, registering, sampling
from headrace.controlplane.changes import PLATFORM, Record
from headrace.controlplane.platform import Platform, Principal, Request, version_in
from headrace.core import resources as r
from headrace.core.errors import Conflict, HeadraceError, InvalidInput, NotFound, RetryLater, Unprocessable
from headrace.core.names import VersionName
from headrace.core.optimization import OptimizationCreate, OptimizationReport
from headrace.core.specs import ExaminationRequest, OptimizationRequest
from headrace.registry import jobs, lifecycle, lineage
from headrace.registry import store as registry
from headrace.registry.jobs import JobRow
from headrace.registry.optimizer import COMMAND, optimize
from headrace.registry.registration import ENTRIES_MAX
from headrace.registry.store import ModelRow, VersionRow

log = logging.getLogger("headrace.controlplane.optimising")
LOOK_S = 1.0
"""Pause between looks for work, and whether what runs is still wanted."""
ATTEMPTS_MAX = 3
"""Times that a job may be begun: one that ends the platform each time is not tried for ever."""
QUEUE_MAX = 100
Guard = Callable[[Connection], None]


# ------------------------------------------------------------------------------------------------ what is asked
async def submit(
    platform: Platform, request: Request, name: str, wanted: VersionName, body: OptimizationCreate
) -> r.Outcome[r.Job]:
    """Queue an optimisation of an ONNX version. Raises Unprocessable for any other, NotFound, Conflict."""
    request.principal.need("developer")
    if not 0 <= body.tolerance < 1:
        raise InvalidInput(f"tolerance: {body.tolerance:g}, expected from 0 to below 1", field="tolerance")

    def look(c: Connection) -> None:
        check_source(c, name, platform.version(c, platform.model(c, request, name)[1], wanted))

    await platform.store.read(look)  # first: who may not reach the model learns nothing of files
    for field in ("data", "calibration"):
        if (sample := getattr(body, field)) is not None:
            sampling.check(sample, field)
            async with sampling.using(platform, sample, field):
                pass  # it is there, and stays: first for the grace period, then because the job needs it
    if find_spec("onnx") is None:
        hint = "install it where the platform runs: pip install 'headrace[optimize]'"
        raise Unprocessable("optimisation needs the package onnx, which this platform does not have", hint=hint)

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        row = platform.version(c, model, wanted)
        check_source(c, name, row)
        if len(jobs.list_all(c, jobs.UNFINISHED)) >= QUEUE_MAX:
            raise Conflict(f"{QUEUE_MAX} jobs are waiting", field="model", hint="headrace jobs list")
        id_ = jobs.add(c, model.id, row.version, body, request.principal.key, request.principal.role)
        after = {"job": id_, "data": body.data.digest, "tolerance": body.tolerance}
        undo = f"headrace jobs cancel {id_}"
        return Record("version.optimize", tenant.name, f"{name}@{row.version}", None, after, undo)

    def show(c: Connection, record: Record) -> r.Job:
        assert record.after is not None
        found = jobs.find(c, record.after["job"])
        assert found is not None
        return view(c, found)

    return await platform.mutate(request, work, show, r.Job)


def check_source(c: Connection, name: str, row: VersionRow) -> None:
    """Raises Unprocessable, Conflict for a version that is not optimised."""
    if row.engine != "onnx":
        text = f"{name}@{row.version} is {row.engine}: only ONNX models are optimised"
        raise Unprocessable(text, field="version", hint="export it to ONNX")
    if lifecycle.find(c, row.model, row.version).state == "retired":
        raise Conflict(f"{name}@{row.version} is retired", field="version")


def view(c: Connection, job: JobRow) -> r.Job:
    """A job as the API shows it."""
    model = registry.find_models(c, [job.model])[job.model]
    tenant = accounts.find_tenants(c, [model.tenant])[model.tenant]
    return r.Job(
        job.id,
        "optimise",
        model.name,
        tenant.name,
        job.version,
        job.state,
        job.progress,
        job.attempts,
        job.error,
        job.report,
        job.made,
        job.created_at,
        job.created_by,
        job.ended_at,
    )


def find(platform: Platform, c: Connection, request: Request, id_: str) -> JobRow:
    """A job of a tenant that is reached. Raises NotFound."""
    job = jobs.find(c, id_)
    own = platform.tenant(c, request)
    if job is None or (
        registry.find_models(c, [job.model])[job.model].tenant != own.index and request.principal.role != "admin"
    ):
        raise NotFound(f"no job {id_[:40]!r}", field="job", hint="headrace jobs list")
    return job


async def cancel(platform: Platform, request: Request, id_: str) -> r.Outcome[r.Job]:
    """End a job that has not ended. Raises Conflict for one that has."""
    request.principal.need("developer")

    def work(c: Connection) -> Record:
        job = find(platform, c, request, id_)
        shown = view(c, job)
        entity = f"{shown.model}@{job.version}"
        if job.state == "cancelled":
            return Record("job.cancel", shown.tenant, entity, changed=False)
        if job.state not in jobs.UNFINISHED:
            raise Conflict(f"{id_} is {job.state} already", field="job")
        jobs.end(c, job, "cancelled", "cancelled")
        return Record("job.cancel", shown.tenant, entity, {"state": job.state}, {"job": id_, "state": "cancelled"})

    return await platform.mutate(request, work, lambda c, _: view(c, find(platform, c, request, id_)), r.Job)


# ------------------------------------------------------------------------------------------------ what is done
class Optimisations:
    """Runs the jobs, one at a time, in the control plane that leads.

    Args:
        platform: the use cases.
        guard: raises in a transaction where another control plane leads by now.
        hidden: variables of our environment that what optimises must not see.
        command: what optimises.
    """

    def __init__(
        self,
        platform: Platform,
        guard: Guard = lambda _: None,
        hidden: Collection[str] = (),
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._platform = platform
        self._store = platform.store
        self._guard = guard
        self._hidden = hidden
        self._command = command
        self._progress = ""

    async def run(self) -> None:
        """Work for ever; what fails for now is tried again."""
        while True:
            worked = False
            try:
                worked = await self.work()
            except HeadraceError as error:
                log.warning("jobs wait: %s", error.message)
            except Exception:
                log.exception("a look for jobs failed")
            if not worked:
                await asyncio.sleep(LOOK_S)

    async def work(self) -> bool:
        """Take the oldest unfinished job to its end; False where there is none."""

        def take(c: Connection) -> JobRow | None:
            waiting = jobs.list_all(c, jobs.UNFINISHED)
            return waiting[0] if waiting else None

        job = await self._store.read(take)
        if job is None:
            return False
        if job.attempts >= ATTEMPTS_MAX:
            await self._fail(job, f"the platform ended {job.attempts} times while it ran; it is not tried again")
            return True

        def begin(c: Connection) -> JobRow | None:
            self._guard(c)
            found = jobs.find(c, job.id)
            if found is None or found.state not in jobs.UNFINISHED:
                return None
            jobs.begin(c, found)
            return jobs.find(c, job.id)

        begun = await self._store.run(begin)
        if begun is not None:
            await self._watched(begun)
        return True

    async def _watched(self, job: JobRow) -> None:
        """Carry a job out, for as long as nobody cancels it; note its progress."""
        self._progress = told = ""
        task = asyncio.get_running_loop().create_task(self._carry_out(job))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=LOOK_S)
                found = await self._store.read(lambda c: jobs.find(c, job.id))
                if found is None or found.state != "running":
                    break
                if self._progress != told:
                    told = self._progress
                    await self._store.run(lambda c, told=told: jobs.tell(c, job.id, told))  # type: ignore[misc]
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _carry_out(self, job: JobRow) -> None:
        try:
            await self._optimise(job)
        except RetryLater as error:  # the store, or the artifact store, is away
            log.warning("job %s waits: %s", job.id, error.message)
            await asyncio.sleep(LOOK_S)
        except HeadraceError as error:
            hint = f" ({error.hint})" if error.hint else ""
            await self._fail(job, error.message + hint)
        except Exception as error:
            log.exception("job %s failed", job.id)
            await self._fail(job, f"a fault of the platform: {type(error).__name__}")

    async def _optimise(self, job: JobRow) -> None:
        row, life, request, name = await self._store.read(lambda c: self._context(c, job))
        platform, asked = self._platform, job.asked
        async with (
            platform.artifacts.using(row.digest),
            platform.artifacts.local(row.digest, row.size_bytes) as source,
            sampling.using(platform, asked.data, "data") as data,
            sampling.using(platform, asked.calibration, "calibration") as calibration,
        ):
            assert data is not None
            with TemporaryDirectory(prefix="headrace-optimise-") as folder:
                order = OptimizationRequest(
                    str(source), folder, row.options, row.signature, asked, data, calibration, life.golden
                )
                report = await optimize(order, self._note, self._command, self._hidden)
                if report.picked is None:
                    await self._fail(job, report.reason, report)
                    return
                await self._register(job, row, request, name, report, Path(folder) / f"{report.picked}.onnx")

    def _note(self, progress: str) -> None:
        self._progress = progress

    def _context(self, c: Connection, job: JobRow) -> tuple[VersionRow, lifecycle.Life, Request, str]:
        """The source, and who asks. Raises NotFound where it was deleted meanwhile, Conflict where it was retired."""
        model = registry.find_models(c, [job.model])[job.model]
        row = registry.find_version(c, job.model, job.version)
        if row is None:
            raise NotFound(f"{model.name}@{job.version} was deleted", field="version")
        check_source(c, model.name, row)
        tenant = accounts.find_tenants(c, [model.tenant])[model.tenant]
        request = Request(Principal(job.created_by, tenant, job.role), reason=job.asked.reason)
        return row, lifecycle.find(c, row.model, row.version), request, model.name

    async def _register(
        self, job: JobRow, row: VersionRow, request: Request, name: str, report: OptimizationReport, path: Path
    ) -> None:
        """Put the artifact, look into it as into any other, and write the version and the job's end in one."""
        platform = self._platform
        digest, size = await asyncio.to_thread(digest_of, path), path.stat().st_size
        await platform.artifacts.put(digest, path)
        async with platform.artifacts.using(digest):
            life = await self._store.read(lambda c: lifecycle.find(c, row.model, row.version))
            order = ExaminationRequest("onnx", "", row.options, row.signature, golden=life.golden)
            found = await composing.examine(platform, order, (digest, size), ())

            def finish(c: Connection) -> None:
                self._guard(c)
                now = jobs.find(c, job.id)
                if now is None or now.state != "running":
                    return  # cancelled meanwhile
                source, current, _, _ = self._context(c, job)
                origin = lineage.list_of(c, [row.model]).get((row.model, row.version), lineage.NONE)
                body = version_of(name, source, current, origin, report, digest)
                record = registering.add_version(platform, c, request, name, "onnx", size, body, found, ())
                changes.append(c, request.principal.key, record, f"{job.id}: {report.reason}")
                jobs.end(c, now, "done", None, report, version_in(record))

            await self._store.run(finish)
        platform.fleet.wake()
        await platform.routing.publish()

    async def _fail(self, job: JobRow, why: str, report: OptimizationReport | None = None) -> None:
        def fail(c: Connection) -> None:
            self._guard(c)
            found = jobs.find(c, job.id)
            if found is None or found.state not in jobs.UNFINISHED:
                return
            shown = view(c, found)
            jobs.end(c, found, "failed", why, report)
            after: dict[str, Any] = {"job": job.id, "error": why[:1000]}
            record = Record("job.failed", shown.tenant, f"{shown.model}@{job.version}", None, after)
            changes.append(c, PLATFORM, record, None)

        await self._store.run(fail)


def version_of(
    name: str,
    source: VersionRow,
    life: lifecycle.Life,
    origin: lineage.Origin,
    report: OptimizationReport,
    digest: str,
) -> r.VersionCreate:
    """An optimised version says what its source says, but for where it comes from and what was measured."""
    picked = next(one for one in report.candidates if one.name == report.picked)
    assert picked.comparison is not None
    stem = source.file_name.removesuffix(".onnx")
    metadata = dict(list(origin.metadata.items())[: ENTRIES_MAX - 2])
    metadata |= {"optimised from": f"{name}@{source.version}", "optimisation": picked.name}
    metrics = {picked.comparison.metric: picked.comparison.after, "speedup": picked.speedup or 0.0}
    return r.VersionCreate(
        digest,
        f"{stem[:200]}.{picked.name}.onnx",
        "onnx",
        source.signature,
        source.options,
        metrics,
        source.tags,
        source.description,
        r.Lineage(origin.training_set, origin.code, str(source.version), origin.features, metadata),
        life.golden,
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def report_of(platform: Platform, c: Connection, request: Request, name: str, wanted: VersionName) -> r.Job:
    """The job that an optimised version came of. Raises NotFound for any other."""
    model: ModelRow = platform.model(c, request, name)[1]
    row = platform.version(c, model, wanted)
    job = jobs.that_made(c, model.id, row.version)
    if job is None:
        hint = f"headrace models optimize {name}@{row.version} --data FILE makes one of it"
        raise NotFound(f"{name}@{row.version} is no optimised version", field="version", hint=hint)
    return view(c, job)
