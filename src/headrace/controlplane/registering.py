"""Use case: a version is registered."""

from __future__ import annotations

from sqlalchemy import Connection

from headrace.controlplane import changes, views
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import Platform, Request, version_in
from headrace.core.database import now
from headrace.core.errors import Forbidden, NotFound, Unprocessable
from headrace.core.names import check_name
from headrace.core.resources import Engine, Outcome, Version, VersionCreate
from headrace.core.specs import Examination, ExaminationRequest
from headrace.registry import registration
from headrace.registry import store as registry
from headrace.registry.store import VersionRow


async def register(platform: Platform, request: Request, name: str, body: VersionCreate) -> Outcome[Version]:
    """Register a version. Raises InvalidInput, NotFound, Unprocessable; Forbidden where a developer says to trust."""
    request.principal.need("developer")
    check_name(name, "model")
    engine = registration.check(body)
    if body.options is not None and body.options.trust:
        _need_trust(request)
    size = platform.artifacts.size(body.digest)
    if size is None:
        raise NotFound(
            f"digest: no artifact {body.digest[:12]}...",
            field="digest",
            hint="PUT /api/v1/artifacts/{digest} first",
        )

    def look(c: Connection) -> tuple[bool, int | None]:
        actor, key = request.principal.key, request.idempotency_key
        again = key is not None and changes.replayed(c, actor, key, request.digest) is not None
        return again, _same_as_latest(platform, c, request, name, engine, body)

    again, known = await platform.store.read(look)
    found = Examination()
    if not again and known is None:
        found = await platform.examiner.examine(
            ExaminationRequest(engine, str(platform.artifacts.path(body.digest)), body.options, body.signature)
        )
        if found.fault is not None:
            raise Unprocessable(found.fault.message, field=found.fault.field, hint=found.fault.hint)

    def work(c: Connection) -> Record:
        tenant = platform.tenant(c, request)
        same = known or _same_as_latest(platform, c, request, name, engine, body)
        if same is not None:  # perhaps pushed by somebody else while it was examined
            return Record("version.register", tenant.name, f"{name}@{same}", changed=False)
        return _add_version(platform, c, request, name, engine, size, body, found)

    def show(c: Connection, record: Record) -> Version:
        tenant, model = platform.model(c, request, name)
        return views.version(platform.version(c, model, version_in(record)), name, tenant.name)

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


def _add_version(
    platform: Platform,
    c: Connection,
    request: Request,
    name: str,
    engine: Engine,
    size: int,
    body: VersionCreate,
    found: Examination,
) -> Record:
    assert found.signature is not None and found.options is not None
    tenant = platform.tenant(c, request)
    model = registry.ensure_model(c, tenant.index, name)
    number = (registry.latest_version(c, model.id) or 0) + 1
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
    )
    after = {"digest": body.digest, "engine": engine, "trust": found.options.trust}
    return Record("version.register", tenant.name, f"{name}@{number}", None, after)


def _same_as_latest(
    platform: Platform, c: Connection, request: Request, name: str, engine: Engine, body: VersionCreate
) -> int | None:
    """The latest version's number where it is what `body` would make again."""
    model = registry.find_model(c, platform.tenant(c, request).index, name)
    latest = registry.latest_version(c, model.id) if model is not None else None
    row = registry.find_version(c, model.id, latest) if model is not None and latest is not None else None
    if row is None or (row.digest, row.engine) != (body.digest, engine):
        return None
    same = body.options is None or body.options == row.options
    given = body.signature
    if given is not None:  # its outputs may be left to the model
        same = same and given.inputs == row.signature.inputs and given.outputs in ((), row.signature.outputs)
    return row.version if same else None
