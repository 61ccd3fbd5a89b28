"""Use case: a version is registered."""

from __future__ import annotations

import asyncio

from sqlalchemy import Connection

from headrace.controlplane import changes, composing, sampling, views
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import Platform, Request, version_in
from headrace.core import pipeline
from headrace.core.database import now
from headrace.core.errors import Conflict, Forbidden, NotFound
from headrace.core.names import check_name
from headrace.core.resources import Engine, Lineage, Outcome, Version, VersionCreate
from headrace.core.specs import Examination, ExaminationRequest
from headrace.registry import inventory, lifecycle, lineage, references, registration
from headrace.registry import parts as parts_store
from headrace.registry import store as registry
from headrace.registry.lineage import Origin
from headrace.registry.parts import Part
from headrace.registry.store import ModelRow, VersionRow


async def register(platform: Platform, request: Request, name: str, body: VersionCreate) -> Outcome[Version]:
    """Register a version. Raises InvalidInput, NotFound, Unprocessable; Forbidden where a developer says to trust."""
    request.principal.need("developer")
    check_name(name, "model")
    engine = registration.check(body)
    if body.options is not None and body.options.trust:
        _need_trust(request)
    if body.reference is not None:
        sampling.check(body.reference, "reference")
    async with platform.artifacts.using(body.digest) as size:
        return await _examined(platform, request, name, engine, size, body)


async def _examined(
    platform: Platform, request: Request, name: str, engine: Engine, size: int, body: VersionCreate
) -> Outcome[Version]:
    """Look into the artifact, unless what it is to become is there already, and write the version."""
    declared = None
    if engine == "pipeline":
        async with platform.artifacts.local(body.digest, size) as path:
            declared = await asyncio.to_thread(pipeline.read, path)

    def look(c: Connection) -> tuple[bool, int | None, tuple[Part, ...]]:
        actor, key = request.principal.key, request.idempotency_key
        if key is not None and changes.replayed(c, actor, key, request.digest) is not None:
            return True, None, ()
        known = _same_as_latest(platform, c, request, name, engine, body)
        if known is not None or declared is None:
            return False, known, ()
        return False, None, composing.find(c, platform.tenant(c, request), declared)

    again, known, parts = await platform.store.read(look)
    found = Examination()
    if not again and known is None:
        async with sampling.using(platform, body.reference, "reference") as sample:
            asked = ExaminationRequest(engine, "", body.options, body.signature, golden=body.golden, sample=sample)
            found = await composing.examine(platform, asked, (body.digest, size), parts)

    def work(c: Connection) -> Record:
        tenant = platform.tenant(c, request)
        same = known or _same_as_latest(platform, c, request, name, engine, body)
        if same is not None:  # perhaps pushed by somebody else while it was examined
            return Record("version.register", tenant.name, f"{name}@{same}", changed=False)
        # Again: meanwhile a part may have been removed, or its grant taken back.
        parts = composing.find(c, tenant, declared) if declared is not None else ()
        return add_version(platform, c, request, name, engine, size, body, found, parts)

    def show(c: Connection, record: Record) -> Version:
        tenant, model = platform.model(c, request, name)
        return views.versions(c, tenant, model, [platform.version(c, model, version_in(record))])[0]

    return await platform.mutate(request, work, show, Version)


def _need_trust(request: Request) -> None:
    """That an artifact may run code of whoever made it is an operator's to say. Raises Forbidden."""
    try:
        request.principal.need("operator")
    except Forbidden as error:
        raise Forbidden(
            f"options.trust: {error.message}",
            field="options.trust",
            hint="store the model without code (skops, ONNX), or have an operator register it",
        ) from None


def add_version(
    platform: Platform,
    c: Connection,
    request: Request,
    name: str,
    engine: Engine,
    size: int,
    body: VersionCreate,
    found: Examination,
    parts: tuple[Part, ...],
) -> Record:
    """Write a version whose artifact was examined. Raises NotFound where that is gone."""
    assert found.signature is not None and found.options is not None
    if not inventory.is_kept(c, body.digest):  # by another control plane, while it was examined
        raise NotFound(f"digest: artifact {body.digest[:12]}... was just removed", field="digest")
    tenant = platform.tenant(c, request)
    model = registry.ensure_model(c, tenant.index, name)
    number = _number(c, model, body.version)
    given = body.lineage or Lineage()
    registry.add_version(
        c,
        VersionRow(
            model.id,
            number,
            engine,
            body.digest,
            size,
            body.file_name,
            found.signature,
            found.options,
            body.metrics,
            body.tags,
            body.description,
            now(),
            request.principal.key,
        ),
        (given.training_set, given.code, given.parent or "", given.features, given.metadata),
    )
    parts_store.add(c, (model.id, number), parts)
    parent = None if given.parent is None else _parent(platform, c, request, model, given.parent)
    origin = Origin(given.training_set, given.code, parent, given.features, given.metadata)
    if origin != lineage.NONE:
        lineage.add(c, model.id, number, origin)
    if body.reference is not None:
        assert found.reference is not None
        references.add(c, model.id, number, body.reference, found.reference, request.principal.key)
    lifecycle.begin(c, model.id, number, request.principal.key, body.golden, found.tests)
    state = lifecycle.state_after(found.tests)
    after = {"digest": body.digest, "engine": engine, "trust": found.options.trust, "state": state}
    return Record("version.register", tenant.name, f"{name}@{number}", None, after)


def _number(c: Connection, model: ModelRow, wanted: int | None) -> int:
    """The number of a new version. Raises Conflict where it is not to have one that another has, or had."""
    least = registry.next_version(c, model.id)
    if wanted is not None and wanted < least:
        text = f"version: {model.name}@{wanted} cannot be made, the next is {model.name}@{least}"
        raise Conflict(text, field="version", hint="a version never changes, and its number is never given again")
    return wanted or least


def _parent(platform: Platform, c: Connection, request: Request, model: ModelRow, text: str) -> tuple[int, int]:
    """The version that a new one was made from. Raises NotFound."""
    wanted = registration.read_parent(text)
    try:
        of = model if wanted.model is None else platform.model(c, request, wanted.model)[1]
        return of.id, platform.version(c, of, wanted.version).version
    except NotFound as error:
        error.field = "lineage.parent"
        raise


def _same_as_latest(
    platform: Platform, c: Connection, request: Request, name: str, engine: Engine, body: VersionCreate
) -> int | None:
    """The latest version's number where it is what `body` would make again."""
    model = registry.find_model(c, platform.tenant(c, request).index, name)
    latest = registry.latest_version(c, model.id) if model is not None else None
    row = registry.find_version(c, model.id, latest) if model is not None and latest is not None else None
    if row is None or (row.digest, row.engine) != (body.digest, engine) or body.version not in (None, row.version):
        return None
    life = lifecycle.find(c, row.model, row.version)
    same = life.state != "retired" and body.options in (None, row.options) and body.golden in (None, life.golden)
    if body.reference is not None:
        about = references.list_of(c, [row.model]).get((row.model, row.version))
        same = same and about is not None and about.sample == body.reference
    given = body.signature
    if given is not None:  # its outputs may be left to the model
        same = same and given.inputs == row.signature.inputs and given.outputs in ((), row.signature.outputs)
    return row.version if same else None
