"""What a replica is told to run and says of itself: the words of the fleet port."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.core.devices import Tier
from headrace.core.golden import Golden, GoldenResult
from headrace.core.optimization import OptimizationCreate, OptimizationReport
from headrace.core.reference import Reference
from headrace.core.signature import Signature
from headrace.core.storage import S3Spec

Origin = Literal["", "process", "zygote", "idle"]
"""What a replica's process was before: nothing, forked from a zygote, one that stood ready; empty: not started yet."""
ReplicaState = Literal["pulling", "starting", "loading", "warming", "ready", "draining", "stopped", "crashed", "failed"]
"""`pulling`: its artifacts come to the node, and there is no process yet; `crashed`: the process ended by itself;
`failed`: it said why it cannot serve (an artifact that does not load)."""


EntryState = Literal["pulling", "waiting", "loading", "ready", "failed"]
"""Of a version in a pack's catalog. `waiting` for its first load, which shows that it can be served and what it takes;
`loading`: that is under way; `ready`: it is served, whether it is in memory at the moment or not."""


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a version is run. Part of the version: immutable with it."""

    outputs: tuple[str, ...] = ()
    """Output tensors to compute, in order; empty means all."""
    nan: Literal["reject", "allow"] = "reject"
    """Whether NaN and infinities in floating inputs are refused with 400 or passed to the model."""
    batch_max: int = 256
    """Most rows in one run of the engine; requests above it run alone."""
    trust: bool = False
    """The artifact may execute code when loaded (a pickle)."""
    run_limit_s: float | None = None
    """A run of the engine that takes longer has its replica killed. None: 60 s, or for as long as somebody waits for
    an answer of that run."""


class ServedPart(msgspec.Struct, frozen=True):
    """A registered version that a pipeline runs, as its replica gets it."""

    reference: str
    """As the pipeline's declaration writes it: ``[tenant/]name@version``."""
    engine: str
    artifact: str
    """Path of the artifact on this node; empty: the node pulls it, as for `ServedVersion`."""
    digest: str
    """SHA-256 of the artifact, hex; checked before loading."""
    signature: Signature
    options: EngineOptions
    size_bytes: int = 0
    """Of the artifact."""


class ServedVersion(msgspec.Struct, frozen=True):
    """One version as a replica gets it."""

    slot: int
    model: str
    """``tenant/name``."""
    version: int
    engine: str
    artifact: str
    """Path of the artifact on this node; empty: the node pulls it into its cache, and fills this in."""
    digest: str
    """SHA-256 of the artifact, hex; checked before loading."""
    signature: Signature
    options: EngineOptions
    size_bytes: int = 0
    """Of the artifact."""
    parts: tuple[ServedPart, ...] = ()
    """Of a pipeline, the versions that it runs."""


class PackSpec(msgspec.Struct, frozen=True):
    """What makes a replica a pack: a process that many versions share, each loaded when it is asked for."""

    number: int
    """Which of the packs it is, from 0."""
    memory_mb: int
    """Most resident memory of the process, in MiB; models are evicted to stay below it."""
    model_memory_mb: int
    """Most memory of a model that says nothing itself, in MiB."""
    loads_max: int = 2
    """Models that are loaded at the same time."""
    waiting_max: int = 256
    """Models that wait for it; a request for one more is refused."""


class CatalogItem(msgspec.Struct, frozen=True):
    """A version that a pack shall serve. `served.slot` is its node's to fill in."""

    served: ServedVersion
    revision: int
    """Of the deployment; a later one is another item."""
    memory_mb: int | None = None
    """Most memory of the model, in MiB; None: the pack's `model_memory_mb`."""
    measured_bytes: int = 0
    """What it took in a pack before: it is known to load. 0: it is to be tried first."""


class CatalogChange(msgspec.Struct, frozen=True):
    """A line from the node to a running pack."""

    add: tuple[CatalogItem, ...] = ()
    remove: tuple[int, ...] = ()
    """Slots."""


CatalogKey = tuple[str, int, int]
"""Model (``tenant/name``), version, and revision of its deployment."""


class CatalogOrder(msgspec.Struct, frozen=True):
    """What the control plane wants changed in a pack's catalog."""

    add: tuple[CatalogItem, ...] = ()
    remove: tuple[CatalogKey, ...] = ()


class CatalogEntry(msgspec.Struct, frozen=True):
    """A version in a pack's catalog, as its node sees it."""

    model: str
    """``tenant/name``."""
    version: int
    revision: int
    slot: int
    state: EntryState
    detail: str = ""
    """Why, for `failed`; of one that is ready, what went wrong at its last load."""
    bytes: int = 0
    """What it takes when it is loaded."""

    @property
    def key(self) -> CatalogKey:
        """By what it is known."""
        return self.model, self.version, self.revision


class ReplicaSpec(msgspec.Struct, frozen=True):
    """A process to run."""

    id: str
    address: str
    """Where it shall listen: ``unix:/path`` or ``tcp:host:port``."""
    versions: tuple[ServedVersion, ...]
    threads: int = 1
    """Threads of the engine within one run."""
    control: str = ""
    """Where its reports go: ``unix:/path`` or ``tcp:host:port``."""
    drain_s: float = 30.0
    """How long it finishes what it has after being told to stop."""
    memory_mb: int | None = None
    """Most resident memory of the process, in MiB; above it, it is killed. None: no limit."""
    device: str = ""
    """Id of the `devices.Device` that it was placed on; empty: its fleet's choice."""
    compute: float | None = None
    """Reserved for it: cores, or accelerators with a T4 for 1."""
    forms: str = ""
    """Folder of its node's serving forms; empty: there is none."""
    pack: PackSpec | None = None
    """Of a pack, which has no `versions`: its catalog comes while it runs."""
    accelerators: float = 0.0
    """That it takes: a fraction of one, or several whole ones of one node."""
    tier: str = ""
    """Kind of hardware that it must run on, `devices.Device.tier`; empty: any."""
    spot: bool = True
    """It may run where the provider may take the machine away."""
    key: str = ""
    """On TCP, its key (hex), by which it and others make sure of each other: `handshake`."""
    unlinked_s: float = 0.0
    """It outlives its node's agent, and leaves when no router has been linked to it for so long. 0: it leaves with the
    agent."""


class FormSpec(msgspec.Struct, frozen=True):
    """A serving form to make; read like `ReplicaSpec`."""

    artifact: str
    digest: str
    folder: str
    """Of all forms."""
    max_bytes: int
    """Of all forms together."""


class ReplicaStatus(msgspec.Struct, frozen=True):
    """A replica as its node sees it."""

    spec: ReplicaSpec
    state: ReplicaState
    pid: int = 0
    detail: str = ""
    """Why, for `crashed` and `failed`."""
    timings_s: dict[str, float] = {}
    """Duration of each stage that is over: ``pull`` of its artifacts, ``start`` of its process, ``import`` of its
    engine, ``verify``, ``load``, ``warm``, and in ``total`` from the command to the first request that it can take."""
    stuck: bool = False
    """A run of it has taken most of the time that it may: it is about to be killed, unless that ends. Or nothing is
    heard of it, though nothing says that it has ended."""
    origin: Origin = ""
    catalog: tuple[CatalogEntry, ...] = ()
    """Of a pack."""
    culprit: str = ""
    """Of a pack that has crashed: the version whose fault it was, ``tenant/name@version``, where that is known."""
    address: str = ""
    """Where it listens, if not at the address of its spec."""
    lost: bool = False
    """What looked after it is gone. One that serves even so is to be replaced, and stopped then; one that has crashed
    did so with its node, by no fault of its own."""


class EntryEvent(msgspec.Struct, frozen=True):
    """What has become of a version in a pack's catalog."""

    slot: int
    state: EntryState
    detail: str = ""
    bytes: int = 0


class ReplicaEvent(msgspec.Struct, frozen=True):
    """A line that a replica writes to its node when its state changes."""

    state: ReplicaState
    detail: str = ""
    timings_s: dict[str, float] = {}
    stuck: bool | None = None
    """Where it is said, the event is about nothing else."""
    entry: EntryEvent | None = None
    """Likewise: a pack speaks of one of its versions."""
    culprit: str = ""
    """See `ReplicaStatus.culprit`."""
    address: str = ""
    """Of one that is ready: where it listens, if not where its spec says."""


class RouterSpec(msgspec.Struct, frozen=True):
    """A router process (HTTP or gRPC) to run. Read from the first line of its standard input; when that input ends,
    its node has gone and it drains."""

    id: str
    host: str
    port: int
    control: str
    """``unix:/path`` of the control plane's socket: snapshots come from there, reports go there."""
    snapshot_path: str
    """Where the last good snapshot is kept."""
    quota_path: str
    """File of float64 arrival times, mapped by all routers of the host so that they share each tenant's quota."""
    anonymous: bool = False
    timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    header_timeout_s: float = 10.0
    max_connections: int = 10_000
    drain_s: float = 30.0
    secret: str = ""
    """The cluster's (hex), where replicas are reached over TCP."""


class ProcessEvent(msgspec.Struct, frozen=True):
    """A line that a router or control plane writes to its node: it is ready (and on which port), or why it cannot."""

    state: Literal["ready", "failed"]
    port: int = 0
    detail: str = ""


class Packing(msgspec.Struct, frozen=True):
    """How versions share processes: see the settings of the same names."""

    shared_replicas: int = 2
    shared_memory_mb: int = 1024
    shared_model_memory_mb: int = 256
    promote_per_s: float = 50.0
    promote_after_s: float = 10.0
    demote_per_s: float = 5.0
    demote_after_s: float = 300.0


class RayLink(msgspec.Struct, frozen=True):
    """What a control plane needs of a fleet on Ray."""

    agent: str
    """``unix:/path`` of the process that speaks with Ray."""
    reports: str
    """``tcp:host:port`` on which the leader listens for replicas' reports."""
    secret: str
    """The cluster's (hex)."""


class ControlSpec(msgspec.Struct, frozen=True):
    """A control-plane process to run; read like `RouterSpec`."""

    data: str
    """The data folder: ``headrace.db``, ``artifacts/``, ``credentials.toml``."""
    host: str
    port: int
    control: str
    """``unix:/path`` on which it listens for routers and replicas."""
    node: str
    """``unix:/path`` of the node agent, which runs processes for it."""
    replica_folder: str
    """Folder for the replicas' sockets (short: a socket's path may have 107 bytes)."""
    anonymous_tenant: str = ""
    artifact_max_bytes: int = 8 << 30
    replicas_max: int = 256
    drain_s: float = 30.0
    http_url: str = ""
    grpc_url: str = ""
    """Where the data plane listens, told to clients by /api/v1/status."""
    artifacts: S3Spec | None = None
    """Where artifacts are kept; None: in the data folder."""
    artifact_grace_s: float = 86_400.0
    cache_max_bytes: int = 32 << 30
    database: str = ""
    """URL of a PostgreSQL database, its password perhaps a reference (`core.secret`); empty: SQLite in the folder."""
    name: str = "control"
    """Its name among the node's control planes."""
    url: str = ""
    """Where clients and the other control planes reach it."""
    control_url: str = ""
    """Where clients reach the first of them."""
    packing: Packing = Packing()
    tiers: dict[str, Tier] = {}
    rebalance_s: float = 600.0
    ray: RayLink | None = None
    """Where the fleet is Ray's."""


class SampleFile(msgspec.Struct, frozen=True):
    """Rows of a model's inputs, as a file of this machine."""

    path: str
    label: str | None = None
    """Column that is no input."""


class ExaminationRequest(msgspec.Struct, frozen=True):
    """An artifact to look into, in a process of its own."""

    engine: str
    path: str
    options: EngineOptions | None = None
    signature: Signature | None = None
    parts: tuple[ServedPart, ...] = ()
    golden: Golden | None = None
    """Signature tests to run on it."""
    sample: SampleFile | None = None
    """Rows to compute reference statistics of."""


class Fault(msgspec.Struct, frozen=True):
    """Why an artifact cannot be served."""

    message: str
    field: str | None = None
    hint: str | None = None


class Examination(msgspec.Struct, frozen=True):
    """What was found: signature and options, or the fault."""

    signature: Signature | None = None
    options: EngineOptions | None = None
    fault: Fault | None = None
    tests: tuple[GoldenResult, ...] = ()
    reference: Reference | None = None


class OptimizationRequest(msgspec.Struct, frozen=True):
    """A model to optimise, in a process of its own."""

    path: str
    folder: str
    """Where candidates go."""
    options: EngineOptions
    signature: Signature
    asked: OptimizationCreate
    data: SampleFile
    calibration: SampleFile | None = None
    golden: Golden | None = None


class OptimizationAnswer(msgspec.Struct, frozen=True):
    """A line from that process: a step, and at last the report or the fault."""

    progress: str = ""
    report: OptimizationReport | None = None
    error: Fault | None = None
