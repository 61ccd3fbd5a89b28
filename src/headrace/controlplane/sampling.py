"""Use cases of samples: rows brought here for whoever looks at them, and the reference statistics of a version, which
are attached once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import Connection

from headrace.controlplane import composing, versioning
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import Platform, Request
from headrace.core import resources as r
from headrace.core.errors import Conflict, HeadraceError, InvalidInput, NotFound
from headrace.core.names import VersionName
from headrace.core.reference import Sample
from headrace.core.specs import ExaminationRequest, SampleFile
from headrace.registry import parts as parts_store
from headrace.registry import references
from headrace.registry.artifacts import check_digest
from headrace.registry.parts import Part
from headrace.registry.store import VersionRow

TEXT_MAX = 255


def check(sample: Sample, field: str) -> None:
    """Raises InvalidInput."""
    try:
        check_digest(sample.digest)
    except InvalidInput as error:
        raise InvalidInput(f"{field}.{error.message}", field=f"{field}.digest") from None
    for name in ("file_name", "label"):
        if len(getattr(sample, name) or "") > TEXT_MAX:
            raise InvalidInput(f"{field}.{name}: longer than {TEXT_MAX} characters", field=f"{field}.{name}")


@asynccontextmanager
async def using(platform: Platform, sample: Sample | None, field: str) -> AsyncIterator[SampleFile | None]:
    """A stored sample as a file of this machine, which stays for the length of the block. Raises NotFound,
    Unavailable."""
    if sample is None:
        yield None
        return
    try:
        size = await platform.artifacts.size(sample.digest)
    except HeadraceError as error:
        error.field = f"{field}.digest"
        raise
    if size is None:
        hint = "send the file first: PUT /api/v1/artifacts/{digest}, or POST /api/v1/uploads"
        raise NotFound(f"{field}.digest: no file {sample.digest[:12]}...", field=f"{field}.digest", hint=hint)
    async with platform.artifacts.using(sample.digest), platform.artifacts.local(sample.digest, size) as path:
        yield SampleFile(str(path), sample.label)


async def attach(
    platform: Platform, request: Request, name: str, wanted: VersionName, sample: Sample
) -> r.Outcome[r.Version]:
    """Compute the reference statistics of a version that has none. Raises Conflict for one that has others,
    Unprocessable for a sample that is not of the model's inputs."""
    request.principal.need("developer")
    check(sample, "reference")

    def look(c: Connection) -> tuple[VersionRow, tuple[Part, ...], bool]:
        _, model = platform.model(c, request, name)
        row = platform.version(c, model, wanted)
        key = (model.id, row.version)
        return row, parts_store.of(c, [key]).get(key, ()), _has(c, name, row, sample)

    row, parts, known = await platform.store.read(look)
    found = None
    if not known:
        async with using(platform, sample, "reference") as file:
            asked = ExaminationRequest(row.engine, "", row.options, row.signature, sample=file)
            found = (await composing.examine(platform, asked, (row.digest, row.size_bytes), parts)).reference
            assert found is not None

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        row_now = platform.version(c, model, row.version)
        entity = f"{name}@{row.version}"
        if _has(c, name, row_now, sample) or found is None:
            return Record("version.reference", tenant.name, entity, changed=False)
        references.add(c, model.id, row.version, sample, found, request.principal.key)
        after = {"digest": sample.digest, "rows": found.rows}
        return Record("version.reference", tenant.name, entity, None, after)

    def show(c: Connection, record: Record) -> r.Version:
        return versioning.show(platform, c, request, name, record)

    return await platform.mutate(request, work, show, r.Version)


def _has(c: Connection, name: str, row: VersionRow, sample: Sample) -> bool:
    """Whether a version has these reference statistics. Raises Conflict where it has others."""
    about = references.list_of(c, [row.model]).get((row.model, row.version))
    if about is None:
        return False
    if (about.sample.digest, about.sample.label) == (sample.digest, sample.label):
        return True
    text = f"{name}@{row.version} has reference statistics, of {about.sample.file_name or about.sample.digest[:12]}"
    hint = "they never change, as little as the version: push the model again for others"
    raise Conflict(text, field="reference", hint=hint)


def show(platform: Platform, c: Connection, request: Request, name: str, wanted: VersionName) -> r.VersionReference:
    """A version's reference statistics. Raises NotFound where it has none."""
    tenant, model = platform.model(c, request, name)
    row = platform.version(c, model, wanted)
    found = references.find(c, model.id, row.version)
    if found is None:
        hint = f"headrace models reference {name}@{row.version} --data FILE"
        raise NotFound(f"{name}@{row.version} has no reference statistics", field="reference", hint=hint)
    about = references.list_of(c, [model.id])[model.id, row.version]
    return r.VersionReference(name, tenant.name, row.version, about.sample, found, about.created_at, about.created_by)
