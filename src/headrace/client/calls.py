"""Requests and replies as values: what the sync and the async client share. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from headrace.core import resources as r
from headrace.core.errors import (
    BY_CODE,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    HeadraceError,
    InvalidInput,
    NotFound,
    PlatformFault,
    QuotaExceeded,
    RetryLater,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unprocessable,
)
from headrace.core.golden import Golden
from headrace.core.names import VersionName, check_alias, parse_reference
from headrace.core.optimization import OptimizationCreate
from headrace.core.reference import Sample
from headrace.core.signature import Signature
from headrace.core.specs import EngineOptions

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request to the control plane and the type of its reply."""

    method: str
    path: str
    reply: Any
    body: msgspec.Struct | None = None
    query: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    """Idempotency key: makes it safe to send again."""
    headers: dict[str, str] = field(default_factory=dict)
    """Further ones: conditions, a reason."""


def read(reply: Any, status: int, content: bytes) -> Any:
    """A reply's body as its type. Raises the error that a problem document tells of."""
    if status < 400:
        return msgspec.json.decode(content, type=reply)
    try:
        problem = msgspec.json.decode(content, type=r.Problem)
    except msgspec.DecodeError:
        raise PlatformFault(f"the platform answered {status}") from None
    raise BY_CODE.get(problem.code, HeadraceError)(problem.detail, field=problem.field, hint=problem.hint)


_BY_STATUS: dict[int, type[HeadraceError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    408: DeadlineExceeded,
    409: Conflict,
    413: TooLarge,
    422: Unprocessable,
    429: QuotaExceeded,
    503: Unavailable,
    504: DeadlineExceeded,
}


def inference_error(status: int, headers: Mapping[str, str], content: bytes) -> HeadraceError:
    """The error that the inference API's status and ``{"error": ...}`` tell of."""
    try:
        message = str(msgspec.json.decode(content)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        message = f"the platform answered {status}"
    error = _BY_STATUS.get(status, PlatformFault)(message)
    after = headers.get("retry-after", "")
    if isinstance(error, RetryLater) and after.isdigit():
        error.retry_after_s = float(after)
    return error


def _query(**values: object) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _mutation(method: str, path: str, reply: Any, body: msgspec.Struct | None = None, **query: object) -> Call[Any]:
    return Call(method, path, reply, body, _query(**query), secrets.token_hex(16))


def status() -> Call[r.Status]:
    """The platform at a glance."""
    return Call("GET", "/api/v1/status", r.Status)


def list_models(tenant: str | None = None, q: str | None = None, cursor: str | None = None) -> Call[r.Page[r.Model]]:
    """A page of models."""
    return Call("GET", "/api/v1/models", r.Page[r.Model], query=_query(tenant=tenant, q=q, cursor=cursor, limit=1000))


def show_model(model: str) -> Call[r.Model]:
    """A model."""
    ref = parse_reference(model)
    return Call("GET", f"/api/v1/models/{ref.model}", r.Model, query=_query(tenant=ref.tenant))


def list_artifacts(cursor: str | None = None) -> Call[r.Page[r.ArtifactUse]]:
    """A page of artifacts, with the versions that need each."""
    return Call("GET", "/api/v1/artifacts", r.Page[r.ArtifactUse], query=_query(cursor=cursor, limit=1000))


def collect_artifacts(dry_run: bool = False, grace_s: float | None = None) -> Call[r.Outcome[r.Collection]]:
    """Remove artifacts that no version needs, or say which they are."""
    body = r.CollectionCreate(dry_run, grace_s)
    return _mutation("POST", "/api/v1/artifacts/gc", r.Outcome[r.Collection], body)


def begin_upload(digest: str, size: int) -> Call[r.Upload]:
    """The upload of an artifact: the one in progress, or a new one. The same whenever it is asked."""
    return _mutation("POST", "/api/v1/uploads", r.Upload, r.UploadCreate(digest, size))


def list_uploads() -> Call[r.Page[r.Upload]]:
    """Uploads in progress."""
    return Call("GET", "/api/v1/uploads", r.Page[r.Upload])


def cancel_upload(id_: str) -> Call[r.Upload]:
    """Give an upload up."""
    return Call("DELETE", f"/api/v1/uploads/{id_}", r.Upload)


def list_all_versions(tenant: str | None = None, cursor: str | None = None) -> Call[r.Page[r.Version]]:
    """A page of the versions of all models."""
    return Call("GET", "/api/v1/versions", r.Page[r.Version], query=_query(tenant=tenant, cursor=cursor, limit=1000))


def list_versions(
    model: str, engine: str | None = None, state: str | None = None, tag: str | None = None
) -> Call[r.Page[r.Version]]:
    """A model's versions; `tag` is ``name`` or ``name=value``."""
    ref = parse_reference(model)
    query = _query(tenant=ref.tenant, engine=engine, state=state, tag=tag, limit=1000)
    return Call("GET", f"/api/v1/models/{ref.model}/versions", r.Page[r.Version], query=query)


def register(
    model: str,
    digest: str,
    file_name: str,
    engine: r.Engine | None,
    signature: Signature | None,
    options: EngineOptions | None,
    metrics: dict[str, float] | None,
    tags: dict[str, str] | None,
    description: str,
    lineage: r.Lineage | None = None,
    golden: Golden | None = None,
    reference: Sample | None = None,
) -> Call[r.Outcome[r.Version]]:
    """Register a version of an artifact that was put."""
    body = r.VersionCreate(
        digest,
        file_name,
        engine,
        signature,
        options,
        metrics or {},
        tags or {},
        description,
        lineage,
        golden,
        reference=reference,
    )
    return create_version(model, body)


def create_version(model: str, body: r.VersionCreate) -> Call[r.Outcome[r.Version]]:
    """Register a version of an artifact that was put."""
    ref = parse_reference(model)
    return _mutation("POST", f"/api/v1/models/{ref.model}/versions", r.Outcome[r.Version], body, tenant=ref.tenant)


def deploy(
    reference: str,
    replicas: int,
    threads: int,
    traffic: float | None,
    reason: str | None,
    memory_mb: int | None = None,
    mode: r.DeploymentMode = "dedicated",
    tiers: Sequence[str] = (),
    spot: bool = False,
    compute: float | None = None,
) -> Call[r.Outcome[r.Deployment]]:
    """Deploy a version."""
    ref = parse_reference(reference)
    body = r.DeploymentCreate(ref.model, ref.version, ref.tenant, replicas, threads, traffic, reason, memory_mb, mode)
    return create_deployment(msgspec.structs.replace(body, tiers=list(tiers), spot=spot, compute=compute))


def create_deployment(body: r.DeploymentCreate) -> Call[r.Outcome[r.Deployment]]:
    """Deploy a version."""
    return _mutation("POST", "/api/v1/deployments", r.Outcome[r.Deployment], body)


def list_deployments(model: str | None = None, tenant: str | None = None) -> Call[r.Page[r.Deployment]]:
    """Deployments."""
    return Call(
        "GET", "/api/v1/deployments", r.Page[r.Deployment], query=_query(model=model, tenant=tenant, limit=1000)
    )


def list_devices(cursor: str | None = None) -> Call[r.Page[r.DeviceStatus]]:
    """A page of the fleet's devices, with what replicas take of each."""
    return Call("GET", "/api/v1/devices", r.Page[r.DeviceStatus], query=_query(cursor=cursor, limit=1000))


def placement() -> Call[r.PlacementPlan]:
    """What the placement optimiser found last, and the moves still to be made."""
    return Call("GET", "/api/v1/placement", r.PlacementPlan)


def _version_path(reference: str) -> tuple[str, str | None]:
    ref = parse_reference(reference)
    if ref.version is None:
        raise InvalidInput(f"{reference!r} names no version", field="version", hint=f"for example {reference}@1")
    return f"/api/v1/models/{ref.model}/versions/{ref.version}", ref.tenant


def approve(reference: str, reason: str | None = None) -> Call[r.Outcome[r.Version]]:
    """Say that a version may take traffic."""
    path, tenant = _version_path(reference)
    return _mutation("POST", f"{path}/approve", r.Outcome[r.Version], r.Reason(reason), tenant=tenant)


def retire(reference: str, reason: str | None = None) -> Call[r.Outcome[r.Version]]:
    """Let nobody deploy a version any more, for good."""
    path, tenant = _version_path(reference)
    return _mutation("POST", f"{path}/retire", r.Outcome[r.Version], r.Reason(reason), tenant=tenant)


def validate(reference: str, golden: Golden | None = None, reason: str | None = None) -> Call[r.Outcome[r.Version]]:
    """Run a version's signature tests again, or others in their place."""
    path, tenant = _version_path(reference)
    return _mutation("POST", f"{path}/validate", r.Outcome[r.Version], r.GoldenRun(golden, reason), tenant=tenant)


def attach_reference(reference: str, sample: Sample, reason: str | None = None) -> Call[r.Outcome[r.Version]]:
    """Compute reference statistics of a version that has none."""
    path, tenant = _version_path(reference)
    body = r.ReferenceCreate(sample, reason)
    return _mutation("POST", f"{path}/reference", r.Outcome[r.Version], body, tenant=tenant)


def show_reference(reference: str) -> Call[r.VersionReference]:
    """A version's reference statistics."""
    path, tenant = _version_path(reference)
    return Call("GET", f"{path}/reference", r.VersionReference, query=_query(tenant=tenant))


def optimize(reference: str, body: OptimizationCreate) -> Call[r.Outcome[r.Job]]:
    """Queue an optimisation of a version."""
    path, tenant = _version_path(reference)
    return _mutation("POST", f"{path}/optimize", r.Outcome[r.Job], body, tenant=tenant)


def show_optimization(reference: str) -> Call[r.Job]:
    """The job that an optimised version came of, with its report."""
    path, tenant = _version_path(reference)
    return Call("GET", f"{path}/optimization", r.Job, query=_query(tenant=tenant))


def list_jobs(
    model: str | None = None, state: str | None = None, tenant: str | None = None, cursor: str | None = None
) -> Call[r.Page[r.Job]]:
    """A page of jobs, oldest first."""
    query = _query(model=model, state=state, tenant=tenant, cursor=cursor, limit=1000)
    return Call("GET", "/api/v1/jobs", r.Page[r.Job], query=query)


def show_job(id_: str) -> Call[r.Job]:
    """A job."""
    return Call("GET", f"/api/v1/jobs/{id_}", r.Job)


def cancel_job(id_: str, reason: str | None = None) -> Call[r.Outcome[r.Job]]:
    """End a job that has not ended."""
    return _mutation("POST", f"/api/v1/jobs/{id_}/cancel", r.Outcome[r.Job], r.Reason(reason))


def delete_version(reference: str) -> Call[r.Outcome[r.Version]]:
    """Delete a retired version that nothing refers to."""
    path, tenant = _version_path(reference)
    return _mutation("DELETE", path, r.Outcome[r.Version], tenant=tenant)


def set_alias(model: str, alias: str, version: VersionName, reason: str | None = None) -> Call[r.Outcome[r.Model]]:
    """Point an alias at a version."""
    ref = parse_reference(model)
    path = f"/api/v1/models/{ref.model}/aliases/{check_alias(alias)}"
    return _mutation("PUT", path, r.Outcome[r.Model], r.AliasUpdate(version, reason), tenant=ref.tenant)


def remove_alias(model: str, alias: str) -> Call[r.Outcome[r.Model]]:
    """Take an alias away."""
    ref = parse_reference(model)
    path = f"/api/v1/models/{ref.model}/aliases/{check_alias(alias)}"
    return _mutation("DELETE", path, r.Outcome[r.Model], tenant=ref.tenant)


def diff(model: str, old: VersionName, new: VersionName) -> Call[r.VersionDiff]:
    """What differs between two versions of a model."""
    ref = parse_reference(model)
    return Call(
        "GET", f"/api/v1/models/{ref.model}/diff", r.VersionDiff, query=_query(tenant=ref.tenant, old=old, new=new)
    )


def _deployment_path(reference: str) -> tuple[str, str | None]:
    ref = parse_reference(reference)
    if ref.version is None:
        raise InvalidInput(f"{reference!r} names no version", field="version", hint=f"for example {reference}@1")
    return f"/api/v1/deployments/{ref.model}@{ref.version}", ref.tenant


def show_deployment(reference: str) -> Call[r.Deployment]:
    """A deployment."""
    path, tenant = _deployment_path(reference)
    return Call("GET", path, r.Deployment, query=_query(tenant=tenant))


def scale(
    reference: str, replicas: int, reason: str | None = None, force: bool = False
) -> Call[r.Outcome[r.Deployment]]:
    """Scale a deployment; to 0 while it has traffic only with `force`."""
    path, tenant = _deployment_path(reference)
    return _mutation("PATCH", path, r.Outcome[r.Deployment], r.DeploymentUpdate(replicas, reason, force), tenant=tenant)


def undeploy(reference: str, force: bool = False) -> Call[r.Outcome[r.Deployment]]:
    """Undeploy a version; while it has traffic only with `force`."""
    path, tenant = _deployment_path(reference)
    forced = "true" if force else None
    return _mutation("DELETE", path, r.Outcome[r.Deployment], tenant=tenant, force=forced)


def list_traffic(tenant: str | None = None, cursor: str | None = None) -> Call[r.Page[r.Traffic]]:
    """A page of the traffic policies of all models."""
    return Call("GET", "/api/v1/traffic", r.Page[r.Traffic], query=_query(tenant=tenant, cursor=cursor, limit=1000))


def show_traffic(model: str) -> Call[r.Traffic]:
    """A traffic policy."""
    ref = parse_reference(model)
    return Call("GET", f"/api/v1/models/{ref.model}/traffic", r.Traffic, query=_query(tenant=ref.tenant))


def set_traffic(
    model: str, weights: Mapping[int, float] | Mapping[str, float], reason: str | None = None
) -> Call[r.Outcome[r.Traffic]]:
    """Split a model's traffic: version -> percent, adding up to 100."""
    ref = parse_reference(model)
    body = r.TrafficUpdate({str(version): percent for version, percent in weights.items()}, reason)
    return _mutation("PUT", f"/api/v1/models/{ref.model}/traffic", r.Outcome[r.Traffic], body, tenant=ref.tenant)


def rollback(model: str, reason: str | None = None) -> Call[r.Outcome[r.Traffic]]:
    """Put back the split before the one in force; again: undo that."""
    ref = parse_reference(model)
    return _mutation(
        "POST", f"/api/v1/models/{ref.model}/rollback", r.Outcome[r.Traffic], r.Reason(reason), tenant=ref.tenant
    )


def pin(model: str, pinned: str, version: VersionName, reason: str | None = None) -> Call[r.Outcome[r.Traffic]]:
    """Pin a tenant to a version."""
    ref = parse_reference(model)
    path = f"/api/v1/models/{ref.model}/traffic/overrides/{pinned}"
    return _mutation("PUT", path, r.Outcome[r.Traffic], r.OverrideUpdate(version, reason), tenant=ref.tenant)


def unpin(model: str, pinned: str) -> Call[r.Outcome[r.Traffic]]:
    """Unpin a tenant."""
    ref = parse_reference(model)
    path = f"/api/v1/models/{ref.model}/traffic/overrides/{pinned}"
    return _mutation("DELETE", path, r.Outcome[r.Traffic], tenant=ref.tenant)


def traffic_history(model: str) -> Call[r.Page[r.Change]]:
    """Every routing change of a model."""
    ref = parse_reference(model)
    path = f"/api/v1/models/{ref.model}/traffic/history"
    return Call("GET", path, r.Page[r.Change], query=_query(tenant=ref.tenant))


def list_changes(
    model: str | None = None,
    since: str | None = None,
    limit: int = 100,
    tenant: str | None = None,
    cursor: str | None = None,
) -> Call[r.Page[r.Change]]:
    """A page of the audit, newest first; `since` is a time such as 2026-01-31T08:00:00Z."""
    query = _query(model=model, since=since, limit=limit, tenant=tenant, cursor=cursor)
    return Call("GET", "/api/v1/changes", r.Page[r.Change], query=query)


def list_quarantined(
    model: str | None = None, tenant: str | None = None, cursor: str | None = None
) -> Call[r.Page[r.Quarantined]]:
    """A page of the inputs in quarantine."""
    query = _query(model=model, tenant=tenant, cursor=cursor, limit=1000)
    return Call("GET", "/api/v1/quarantine", r.Page[r.Quarantined], query=query)


def lift_quarantine(
    reference: str, digest: str | None = None, reason: str | None = None
) -> Call[r.Outcome[r.Page[r.Quarantined]]]:
    """Let an input of a version through again, or all of them; the result is what is left."""
    path, tenant = _deployment_path(reference)
    path = path.replace("/deployments/", "/quarantine/")
    kind = r.Outcome[r.Page[r.Quarantined]]
    return _mutation("DELETE", path, kind, input=digest, reason=reason, tenant=tenant)


def audit_head() -> Call[r.AuditHead]:
    """The last row of the audit's chain."""
    return Call("GET", "/api/v1/audit/head", r.AuditHead)


def verify_audit(since: str | None = None, anchor: str | None = None) -> Call[r.AuditCheck]:
    """Walk along the audit's chain; `since` is a time, `anchor` a ``CHANGE:HASH`` that was kept elsewhere."""
    return Call("GET", "/api/v1/audit/verify", r.AuditCheck, query=_query(since=since, anchor=anchor))


def list_tenants() -> Call[r.Page[r.Tenant]]:
    """Tenants."""
    return Call("GET", "/api/v1/tenants", r.Page[r.Tenant], query=_query(limit=1000))


def show_tenant(name: str) -> Call[r.Tenant]:
    """A tenant."""
    return Call("GET", f"/api/v1/tenants/{name}", r.Tenant)


def create_tenant(
    name: str, quota: r.Quota | None = None, approval: r.Approval = "optional"
) -> Call[r.Outcome[r.Tenant]]:
    """Create a tenant."""
    body = r.TenantCreate(name, quota or r.Quota(), approval)
    return _mutation("POST", "/api/v1/tenants", r.Outcome[r.Tenant], body)


def update_tenant(name: str, change: r.TenantUpdate) -> Call[r.Outcome[r.Tenant]]:
    """Change a tenant."""
    return _mutation("PATCH", f"/api/v1/tenants/{name}", r.Outcome[r.Tenant], change)


def list_keys(tenant: str | None = None) -> Call[r.Page[r.Key]]:
    """Keys."""
    return Call("GET", "/api/v1/keys", r.Page[r.Key], query=_query(tenant=tenant, limit=1000))


def show_key(id_: str = "self") -> Call[r.Key]:
    """A key; the one that asks when left out."""
    return Call("GET", f"/api/v1/keys/{id_}", r.Key)


def create_key(
    role: r.Role, tenant: str | None = None, label: str = "", account: str = ""
) -> Call[r.Outcome[r.KeyCreated]]:
    """Create a key. Not replayed: its text is shown once."""
    return Call("POST", "/api/v1/keys", r.Outcome[r.KeyCreated], r.KeyCreate(role, tenant, label, account))


def rotate_key(id_: str, overlap_s: float = 86_400.0, reason: str | None = None) -> Call[r.Outcome[r.KeyCreated]]:
    """Another key in a key's place; the old one stays good for `overlap_s`. Not replayed: its text is shown once."""
    return Call("POST", f"/api/v1/keys/{id_}/rotate", r.Outcome[r.KeyCreated], r.KeyRotate(overlap_s, reason))


def revoke_key(id_: str) -> Call[r.Outcome[r.Key]]:
    """Revoke a key."""
    return _mutation("DELETE", f"/api/v1/keys/{id_}", r.Outcome[r.Key])


def update_model(model: str, change: r.ModelUpdate) -> Call[r.Outcome[r.Model]]:
    """Change a model's settings."""
    ref = parse_reference(model)
    return _mutation("PATCH", f"/api/v1/models/{ref.model}", r.Outcome[r.Model], change, tenant=ref.tenant)


def show_version(reference: str) -> Call[r.Version]:
    """A version, ``churn@4`` or ``churn@champion``."""
    path, tenant = _version_path(reference)
    return Call("GET", path, r.Version, query=_query(tenant=tenant))


def revoke_grant(model: str, to: str) -> Call[r.Outcome[r.Model]]:
    """Take a grant back."""
    ref = parse_reference(model)
    return _mutation("DELETE", f"/api/v1/models/{ref.model}/grants/{to}", r.Outcome[r.Model], tenant=ref.tenant)


def grant(model: str, to: str) -> Call[r.Outcome[r.Model]]:
    """Let another tenant call a model."""
    ref = parse_reference(model)
    return _mutation("PUT", f"/api/v1/models/{ref.model}/grants/{to}", r.Outcome[r.Model], tenant=ref.tenant)
