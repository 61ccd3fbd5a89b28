"""The control plane's REST API for artifacts: thin handlers over the use cases of `artifacts`."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from litestar import Request as Http
from litestar import Response, delete, get, head, post, put
from litestar.params import FromPath, HeaderParameter, JSONBody
from sqlalchemy import Connection

from headrace.controlplane import accounts
from headrace.controlplane.artifacts import gc_record
from headrace.controlplane.routes.asked import Api, Cursor, Limit, context, page
from headrace.core import resources as r
from headrace.core.errors import InvalidInput, NotFound
from headrace.registry import inventory
from headrace.registry import store as registry
from headrace.registry.artifacts import Stored, check_digest

GRACE_MAX_S = 1e9
ContentRange = Annotated[str, HeaderParameter(name="content-range", description="`bytes FIRST-LAST/SIZE`.")]


@head("/api/v1/artifacts/{digest:str}", summary="Is an artifact stored?")
async def has_artifact(request: Http[Any, Any, Any], platform: Api, digest: FromPath[str]) -> Response[None]:
    """200 with its size, or 404. What is there stays for the grace period from now on."""
    size = await platform.artifacts.size(digest)
    if size is None:
        raise NotFound("digest: no such artifact", field="digest")
    return Response(None, headers={"x-artifact-size": str(size)})


@put("/api/v1/artifacts/{digest:str}", request_max_body_size=None, summary="Store an artifact")
async def put_artifact(request: Http[Any, Any, Any], platform: Api, digest: FromPath[str]) -> r.Artifact:
    """Developer. The body is the artifact's bytes, `digest` their SHA-256 in hex. Idempotent. A large one had better be
    sent in parts: `/api/v1/uploads`."""
    request.state.principal.need("developer")
    length = request.headers.get("content-length", "")
    return await platform.artifacts.receive(digest, int(length) if length.isdigit() else None, request.stream())


@get("/api/v1/artifacts", summary="List artifacts")
async def list_artifacts(
    request: Http[Any, Any, Any], platform: Api, limit: Limit = 100, cursor: Cursor = None
) -> r.Page[r.ArtifactUse]:
    """Admin: artifacts belong to no tenant. By digest, with the versions that need each."""
    asked = await context(request)
    asked.principal.need("admin")
    stored = [item async for item in platform.artifacts.store.list()]

    def read(c: Connection) -> dict[str, list[str]]:
        tenants = {t.index: t.name for t in accounts.list_tenants(c)}
        models = {m.id: f"{tenants[m.tenant]}/{m.name}" for m in registry.list_models(c)}
        found = inventory.references(c)
        return {digest: [f"{models[model]}@{number}" for model, number in keys] for digest, keys in found.items()}

    versions = await platform.store.run(read)
    found = [_use(item, versions.get(item.digest, [])) for item in stored]
    return page(found, limit, cursor, lambda one: one.digest, lambda one: one.digest, check_digest)


def _use(item: Stored, versions: list[str]) -> r.ArtifactUse:
    at = datetime.datetime.fromtimestamp(item.stored_at, datetime.UTC).isoformat(timespec="milliseconds")
    return r.ArtifactUse(item.digest, item.size_bytes, at.replace("+00:00", "Z"), versions)


@post("/api/v1/artifacts/gc", status_code=200, summary="Remove artifacts that nobody needs")
async def collect_artifacts(
    request: Http[Any, Any, Any], platform: Api, data: JSONBody[r.CollectionCreate]
) -> r.Outcome[r.Collection]:
    """Admin. One that no version needs, no upload brings, and nobody has put or asked for during the grace period."""
    asked = await context(request)
    asked.principal.need("admin")
    if data.grace_s is not None and not 0 <= data.grace_s <= GRACE_MAX_S:
        raise InvalidInput(f"grace_s: {data.grace_s}, expected 0 to {GRACE_MAX_S:g} seconds", field="grace_s")
    found = await platform.artifacts.collect(data.dry_run, data.grace_s)
    return await platform.mutate(asked, lambda _: gc_record(found), lambda _, record: found, r.Collection)


@post("/api/v1/uploads", summary="Begin or resume an upload")
async def begin_upload(request: Http[Any, Any, Any], platform: Api, data: JSONBody[r.UploadCreate]) -> r.Upload:
    """Developer. The tenant's upload of this artifact as it stands: the one in progress, or a new one. Send the rest
    from `offset` on, in parts, then commit."""
    request.state.principal.need("developer")
    return platform.artifacts.begin(request.state.principal.tenant.index, data)


@get("/api/v1/uploads", summary="List uploads in progress")
async def list_uploads(request: Http[Any, Any, Any], platform: Api) -> r.Page[r.Upload]:
    """The caller's tenant's."""
    return r.Page(platform.artifacts.list(request.state.principal.tenant.index))


@get("/api/v1/uploads/{id_:str}", summary="Show an upload")
async def show_upload(request: Http[Any, Any, Any], platform: Api, id_: FromPath[str]) -> r.Upload:
    """Where it stands."""
    return platform.artifacts.show(request.state.principal.tenant.index, id_)


@put("/api/v1/uploads/{id_:str}", request_max_body_size=None, summary="Send a part of an upload")
async def put_part(
    request: Http[Any, Any, Any], platform: Api, id_: FromPath[str], content_range: ContentRange
) -> r.Upload:
    """Developer. The body is the bytes that `Content-Range` names, beginning at the upload's `offset`; 409 tells where
    that is otherwise. A part is kept whole or not at all."""
    request.state.principal.need("developer")
    tenant = request.state.principal.tenant.index
    return await platform.artifacts.append(tenant, id_, content_range, request.stream())


@post("/api/v1/uploads/{id_:str}/commit", status_code=200, summary="Make a whole upload an artifact")
async def commit_upload(request: Http[Any, Any, Any], platform: Api, id_: FromPath[str]) -> r.Artifact:
    """Developer. Checks the SHA-256; an upload that is something else is given up."""
    request.state.principal.need("developer")
    return await platform.artifacts.commit(request.state.principal.tenant.index, id_)


@delete("/api/v1/uploads/{id_:str}", status_code=200, summary="Give an upload up")
async def cancel_upload(request: Http[Any, Any, Any], platform: Api, id_: FromPath[str]) -> r.Upload:
    """Developer."""
    request.state.principal.need("developer")
    return await platform.artifacts.cancel(request.state.principal.tenant.index, id_)


HANDLERS = [
    has_artifact,
    put_artifact,
    list_artifacts,
    collect_artifacts,
    begin_upload,
    list_uploads,
    show_upload,
    put_part,
    commit_upload,
    cancel_upload,
]
