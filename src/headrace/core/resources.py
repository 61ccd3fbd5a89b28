"""The control-plane API's resources, as both its server and its client have them."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec

from headrace.core.golden import Golden, GoldenResult
from headrace.core.optimization import OptimizationReport
from headrace.core.reference import Reference, Sample
from headrace.core.signature import Signature
from headrace.core.specs import EngineOptions, Origin, ReplicaState

T = TypeVar("T")

Role = Literal["viewer", "developer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "developer", "operator", "admin")
"""Each may do what those before it may. viewer: read and predict; developer: register; operator: deploy, scale, route;
admin: tenants and keys, of every tenant."""
KeyState = Literal["active", "rotating", "revoked"]
VersionState = Literal["registered", "validated", "approved", "retired"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]
Approval = Literal["optional", "required", "four-eyes"]
"""Whether a version must be approved before it may take traffic; four-eyes: by another than who registered it."""
Engine = Literal["onnx", "xgboost", "lightgbm", "sklearn", "python", "torch", "pipeline"]
DeploymentState = Literal["requested", "starting", "ready", "draining", "stopped", "failed"]


class Page(msgspec.Struct, Generic[T]):
    """A page of a list; `next` is the cursor of the next one, null on the last."""

    items: list[T]
    next: str | None = None


class ChangeRef(msgspec.Struct):
    """What a mutation did to the record: its change, how to undo it, and when it took effect."""

    id: int
    undo: str | None = None
    """The command that undoes it."""
    effective: bool = True
    """Whether every router serves by it already; false when one did not answer in time (it will follow)."""
    effective_ms: float | None = None
    """From commit to the last router's acknowledgement; null where routing was not touched."""


class Outcome(msgspec.Struct, Generic[T]):
    """The reply to every mutation."""

    result: T
    change: ChangeRef


class Problem(msgspec.Struct):
    """RFC 9457 problem document, ``application/problem+json``."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    hint: str | None = None


# ------------------------------------------------------------------------------------------------ tenants and keys
class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tenant's limits at each router host."""

    rate_per_s: float = 10_000.0
    """Requests a second, sustained (GCRA)."""
    burst: float = 2_000.0
    """Requests that may come at once (at least 1)."""
    max_in_flight: int = 4_096


class Tenant(msgspec.Struct):
    """A team."""

    name: str
    state: Literal["active", "suspended"]
    quota: Quota
    approval: Approval
    created_at: str
    """RFC 3339, UTC, like every time in the API."""


class TenantCreate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/tenants"""

    name: str
    quota: Quota = Quota()
    approval: Approval = "optional"


class TenantUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH /api/v1/tenants/{name}; fields left out stay."""

    state: Literal["active", "suspended"] | None = None
    rate_per_s: float | None = None
    burst: float | None = None
    max_in_flight: int | None = None
    reason: str | None = None
    approval: Approval | None = None


class Key(msgspec.Struct):
    """An API key. Its secret is shown once, by its creation."""

    id: str
    """``hr_<id>``."""
    tenant: str
    role: Role
    label: str
    account: str
    """The person or service that holds it, over all rotations; the first key's id where nobody said."""
    state: KeyState
    created_at: str
    expires_at: str | None = None
    """When a key that is `rotating` ends."""


class KeyCreate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/keys"""

    role: Role
    tenant: str | None = None
    """The caller's own tenant when left out."""
    label: str = ""
    account: str = ""
    """The person or service that holds it; itself when left out."""


class KeyRotate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/keys/{id}/rotate"""

    overlap_s: float = 86_400.0
    """How long the old key stays good."""
    reason: str | None = None


class KeyCreated(msgspec.Struct):
    """The reply to a key's creation: the only time that its text is shown."""

    key: Key
    text: str
    """``hr_<id>_<secret>``: what goes into the Authorization header."""


# ------------------------------------------------------------------------------------------------ registry
class Model(msgspec.Struct):
    """A line of versions."""

    name: str
    tenant: str
    description: str
    tags: dict[str, str]
    grants: list[str]
    """Other tenants that may call it."""
    idempotent: bool
    """Whether a request may be tried again on another replica."""
    timeout_s: float
    body_max_bytes: int
    latest: int | None
    """Highest version; null before the first."""
    serving: dict[str, float]
    """Version -> percent of the traffic."""
    aliases: dict[str, int]
    """Alias -> version."""
    created_at: str


class ModelUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH /api/v1/models/{model}; fields left out stay."""

    description: str | None = None
    tags: dict[str, str] | None = None
    idempotent: bool | None = None
    timeout_s: float | None = None
    body_max_bytes: int | None = None
    reason: str | None = None


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a version comes from, and what it needs."""

    training_set: str = ""
    """Reference of the data that it was trained on."""
    code: str = ""
    """Revision of the code that trained it."""
    parent: str | None = None
    """The version that it was made from: ``churn@3``, or of the same model ``3``."""
    features: list[str] = []
    """Required features, ``name@version``."""
    metadata: dict[str, str] = {}
    """Free."""


class ReferenceSummary(msgspec.Struct, frozen=True):
    """Which reference statistics a version has; GET .../reference shows them."""

    sample: Sample
    rows: int
    features: int
    """Of inputs and outputs."""
    created_at: str


class Version(msgspec.Struct):
    """An immutable version, and what people have decided of it: state, aliases, signature tests."""

    model: str
    tenant: str
    version: int
    engine: Engine
    digest: str
    """SHA-256 of the artifact, hex."""
    size_bytes: int
    file_name: str
    signature: Signature
    options: EngineOptions
    metrics: dict[str, float]
    tags: dict[str, str]
    description: str
    lineage: Lineage
    state: VersionState
    aliases: list[str]
    tests: list[GoldenResult]
    """How its signature tests went when they were last run; empty where it has none."""
    created_at: str
    created_by: str
    parts: list[str] = []
    """Of a pipeline, the versions that it runs, as its declaration writes them."""
    used_by: list[str] = []
    """Pipelines that run it; while there are any it cannot be removed."""
    reference: ReferenceSummary | None = None
    """Of its reference statistics, where it has any."""


class VersionCreate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/models/{model}/versions; creates the model with its first version. The artifact was put before
    (PUT /api/v1/artifacts/{digest}). Idempotent: the same digest, engine and options as the latest version's give
    that version back, changing nothing."""

    digest: str
    file_name: str
    engine: Engine | None = None
    """Guessed from `file_name` when left out."""
    signature: Signature | None = None
    """Read out of the model when left out."""
    options: EngineOptions | None = None
    """The engine's own defaults when left out."""
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    description: str = ""
    lineage: Lineage | None = None
    golden: Golden | None = None
    """Signature tests: run now, and passed before the version may take traffic."""
    version: int | None = None
    """The number that it shall get: refused (409) unless none as high was ever given. The next when left out."""
    reference: Sample | None = None
    """Sample to compute reference statistics of, now."""


class ReferenceCreate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/models/{model}/versions/{version}/reference"""

    reference: Sample
    reason: str | None = None


class VersionReference(msgspec.Struct):
    """GET /api/v1/models/{model}/versions/{version}/reference"""

    model: str
    tenant: str
    version: int
    sample: Sample
    statistics: Reference
    created_at: str
    created_by: str


class GoldenRun(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/models/{model}/versions/{version}/validate"""

    golden: Golden | None = None
    """Signature tests in place of those that the version has; those again when left out."""
    reason: str | None = None


class Job(msgspec.Struct):
    """Work on a version that takes longer than a request."""

    id: str
    kind: Literal["optimise"]
    model: str
    tenant: str
    version: int
    """What it is about."""
    state: JobState
    progress: str
    """The step that runs."""
    attempts: int
    """Times that it was begun: more than 1 where the control plane ended meanwhile."""
    error: str | None
    """Why it failed: the gate's verdict too."""
    report: OptimizationReport | None
    made: int | None
    """The version that came of it."""
    created_at: str
    created_by: str
    ended_at: str | None = None


class AliasUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """PUT /api/v1/models/{model}/aliases/{alias}"""

    version: int | str
    """A number, or another alias: then the version that it points at now."""
    reason: str | None = None


class Difference(msgspec.Struct):
    """A field that two versions do not have in common; null where one does not have it."""

    field: str
    """``engine``, ``metrics.auc``, ``signature.inputs.x``, ..."""
    old: Any
    new: Any
    change: float | None = None
    """By how much a number grew."""


class VersionDiff(msgspec.Struct):
    """GET /api/v1/models/{model}/diff"""

    model: str
    tenant: str
    old: int
    new: int
    differences: list[Difference]


class Artifact(msgspec.Struct):
    """A stored artifact."""

    digest: str
    size_bytes: int


class ArtifactUse(msgspec.Struct):
    """A stored artifact and what it is for."""

    digest: str
    size_bytes: int
    stored_at: str
    versions: list[str]
    """``tenant/model@version``; an artifact of none is removed in time."""


class UploadCreate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/uploads"""

    digest: str
    """SHA-256 of the whole artifact, hex."""
    size_bytes: int


class Upload(msgspec.Struct):
    """An artifact on its way in."""

    id: str
    digest: str
    size_bytes: int
    offset: int
    """Bytes that have come and are kept: go on here."""
    part_max_bytes: int
    expires_at: str
    """When it is given up, should nothing more come."""


class CollectionCreate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/artifacts/gc"""

    dry_run: bool = False
    """Only say what would be removed."""
    grace_s: float | None = None
    """Remove what nobody has put or asked for for so long; left out: the setting's."""


class Collection(msgspec.Struct):
    """What was removed, or would be."""

    dry_run: bool
    removed: list[Artifact]
    bytes_removed: int
    kept: int
    """Artifacts that stay."""
    missing: list[str]
    """Digests that versions need and the store does not have."""
    uploads_expired: int
    parts_swept: int
    """Multi-part uploads of killed processes that were aborted in the storage."""


# ------------------------------------------------------------------------------------------------ deployments
class Replica(msgspec.Struct):
    """A replica as the deployment shows it."""

    id: str
    state: ReplicaState
    pid: int
    detail: str = ""
    timings_s: dict[str, float] = {}
    """Duration of each stage of its start: ``pull``, ``start``, ``import``, ``verify``, ``load``, ``warm``, and of all
    in ``total``."""
    origin: Origin = ""
    """What its process was before: forked from a ``zygote``, one that stood ``idle``, or a new ``process``."""
    device: str = ""
    """Where it was placed."""


DeploymentMode = Literal["dedicated", "shared", "auto"]
"""`dedicated`: replicas of its own; `shared`: loaded into processes that it has in common with others when it is asked
for; `auto`: the one or the other, by its load."""
Placement = Literal["dedicated", "shared", "isolated"]
"""Where a deployment is served now; `isolated`: in replicas of its own, for it has ended shared processes."""


class Deployment(msgspec.Struct):
    """A version's desired and actual presence in the fleet."""

    model: str
    tenant: str
    version: int
    state: DeploymentState
    replicas: int
    """Desired."""
    ready: int
    threads: int
    detail: str
    """Why it is where it is: what a failed replica said, when the next try comes."""
    instances: list[Replica]
    traffic_percent: float
    created_at: str
    memory_mb: int | None = None
    """Most memory of a replica, in MiB; of a shared one, of the model."""
    traffic_on_ready: float | None = None
    """Percent that it takes once ready; null where none waits."""
    start_p95_s: float | None = None
    """95th percentile of its replicas' last starts, from the command to ready; of its engine's where it has none."""
    mode: DeploymentMode = "dedicated"
    placed: Placement = "dedicated"
    placed_why: str = ""
    """Why it was moved there."""
    resident: bool | None = None
    """Of one that is in shared processes: whether it is in the memory of any."""
    tiers: list[str] = []
    """Hardware that it may run on, any of them; empty: processors."""
    spot: bool = False
    compute: float | None = None
    """Reserved for each replica."""


class DeploymentCreate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/deployments. The first deployment of a model takes all its traffic once ready; a later one takes
    none until told to, by `traffic_percent` or PUT .../traffic."""

    model: str
    version: int | str | None = None
    """A number or an alias; the latest when left out."""
    tenant: str | None = None
    replicas: int = 1
    threads: int = 1
    """Threads of the engine per replica."""
    traffic_percent: float | None = None
    """Share it takes once ready; the other versions shrink in proportion."""
    reason: str | None = None
    memory_mb: int | None = None
    """Most memory of a replica, in MiB; one that takes more is killed. No limit when left out. Of a shared deployment,
    most memory of the model."""
    mode: DeploymentMode = "dedicated"
    tiers: list[str] = []
    """Hardware that it may run on, any of them: ``a100``, ``l40``, ``t4``, ``cpu``. Processors when left out."""
    spot: bool = False
    """It may run on devices that the provider may take away."""
    compute: float | None = None
    """Reserved for each replica: cores, or accelerators with a T4 for 1. When left out, nothing of processors, and of
    an accelerator as much as of its memory."""


class DeploymentUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH /api/v1/deployments/{model}@{version}"""

    replicas: int
    reason: str | None = None
    force: bool = False
    """Go to 0 replicas even while it has traffic or pinned tenants: their requests are then refused (503)."""


class DeviceStatus(msgspec.Struct):
    """A device and what is on it. Of memory and compute replicas may take 90 % and 80 %."""

    id: str
    node: str
    tier: str
    spot: bool
    memory_mb: int
    memory_used_mb: float
    """By limits, measurements and estimates: what placement reckons with."""
    compute: float
    """Cores, or accelerators with a T4 for 1."""
    compute_used: float
    """Reserved."""
    replicas: int
    price_per_h: float


class PlannedMove(msgspec.Struct):
    """A replica that is to run elsewhere: the new one starts, then the old one drains."""

    model: str
    tenant: str
    version: int
    replica: str
    source: str
    target: str


class PlacementPlan(msgspec.Struct):
    """GET /api/v1/placement: what the background optimiser found last."""

    detail: str
    """What it does, or why it does not."""
    at: str | None
    """When it last looked; null: not yet."""
    price_per_h: float
    """Of the devices in use then."""
    price_after_per_h: float
    bound_per_h: float
    """What no placement can be cheaper than."""
    moves: list[PlannedMove]
    """Those still to be made."""


class Quarantined(msgspec.Struct):
    """An input that has killed replicas of a version, and is refused (422)."""

    model: str
    tenant: str
    version: int
    digest: str
    """Of version and inputs, 32 hexadecimal digits."""
    at: str
    """Since when."""
    until: str


# ------------------------------------------------------------------------------------------------ traffic
class Traffic(msgspec.Struct):
    """A model's traffic policy."""

    model: str
    tenant: str
    epoch: int
    """Version of the policy; what `If-Match` names."""
    weights: dict[str, float]
    """Version -> percent; they add up to 100."""
    overrides: dict[str, int]
    """Tenant -> version."""
    previous: dict[str, float] | None
    """What `rollback` would put in place; null where there is nothing to go back to."""


class TrafficUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """PUT /api/v1/models/{model}/traffic. Every version named, by number or alias, must be ready."""

    weights: dict[str, float]
    reason: str | None = None


class OverrideUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """PUT /api/v1/models/{model}/traffic/overrides/{tenant}"""

    version: int | str
    """A number or an alias."""
    reason: str | None = None


class Reason(msgspec.Struct, forbid_unknown_fields=True):
    """Body of an action without parameters (rollback, approve, retire)."""

    reason: str | None = None


class Change(msgspec.Struct):
    """A row of the audit: who did what, when, from what to what."""

    id: int
    at: str
    actor: str
    """``hr_<id>`` of the key, or ``platform``."""
    action: str
    """``traffic.set``, ``traffic.rollback``, ``deployment.create``, ..."""
    tenant: str
    entity: str
    """``churn``, ``churn@4``, a tenant's or key's name."""
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None
    undo: str | None
    hash: str
    """SHA-256, hex, of this row and of the hash of the row before it."""


class AuditHead(msgspec.Struct):
    """GET /api/v1/audit/head: the last row of the audit's chain. Kept elsewhere, as ``CHANGE:HASH``, an anchor."""

    change: int
    """0 before the first."""
    hash: str
    at: str


class AuditBreak(msgspec.Struct):
    """The first row of the audit that is not as it was written."""

    change: int
    reason: str


class AuditCheck(msgspec.Struct):
    """GET /api/v1/audit/verify"""

    ok: bool
    checked: int
    """Rows that are as they were written."""
    head: AuditHead
    broken: AuditBreak | None = None


# ------------------------------------------------------------------------------------------------ the whole
class RouterStatus(msgspec.Struct):
    """A router process as the control plane sees it."""

    id: str
    pid: int
    connected: bool
    epoch: int
    requests_per_s: float
    rss_bytes: int


class PackStatus(msgspec.Struct):
    """A shared process at a glance; counts are since the control plane started."""

    id: str
    number: int
    state: ReplicaState
    pid: int
    versions: int
    """In its catalog."""
    resident: int
    """Of these, in memory."""
    resident_bytes: int
    """What they take."""
    rss_bytes: int
    """Of the process."""
    limit_bytes: int
    loads: int
    evictions: int
    hits: int
    misses: int


class FleetDevice(msgspec.Struct):
    """A node's processors together, or one accelerator of it."""

    id: str
    """``NODE/cpu``, ``NODE/gpu0``."""
    tier: str
    memory_mb: int
    compute: float
    """Cores; 1 for an accelerator."""
    spot: bool


class FleetStatus(msgspec.Struct):
    """What runs the replicas."""

    kind: str = "local"
    """``local`` or ``ray``."""
    holding: str = ""
    """Why nothing can be started or stopped now; empty where it can."""
    devices: list[FleetDevice] = []
    """Of a fleet of several nodes."""


class ModelStatus(msgspec.Struct):
    """A model at a glance: what serves, and how well, over the last 10 s."""

    model: str
    tenant: str
    serving: dict[str, float]
    ready_replicas: int
    requests_per_s: float
    errors_per_s: float
    p50_ms: float | None
    p99_ms: float | None


class Status(msgspec.Struct):
    """GET /api/v1/status"""

    version: str
    uptime_s: float
    epoch: int
    """Of the routing snapshot."""
    url: str
    """Where inference is to be had over HTTP."""
    grpc_url: str
    """The same over gRPC; empty where it is off."""
    routers: list[RouterStatus]
    models: list[ModelStatus]
    deployments: list[Deployment]
    packs: list[PackStatus] = []
    """Shared processes."""
    fleet: FleetStatus = msgspec.field(default_factory=FleetStatus)
