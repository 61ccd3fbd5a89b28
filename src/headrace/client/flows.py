"""What the client does, step by step, without doing any of it: one implementation for the sync and the async client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from headrace.client import artifacts, calls, uploads
from headrace.client.calls import Call
from headrace.client.steps import Answer, Flow, Lost, Memory, Pause, Progress, Send, request
from headrace.core import resources as r
from headrace.core.errors import InvalidInput, NotFound, Unavailable, Unprocessable
from headrace.core.golden import Golden
from headrace.core.names import Reference, VersionName, parse_reference
from headrace.core.reference import Sample
from headrace.core.signature import Signature
from headrace.core.specs import EngineOptions

if TYPE_CHECKING:
    from headrace.client.tensors import Prediction

T = TypeVar("T")
LOOK_S = 0.05
"""Pause between two looks at a deployment that is starting."""


# ------------------------------------------------------------------------------------------------ control plane
def all_pages(memory: Memory, first: Call[r.Page[T]]) -> Flow[list[T]]:
    """Every item of a list, page after page."""
    items: list[T] = []
    call = first
    while True:
        page = yield from request(memory, call)
        items += page.items
        if page.next is None:
            return items
        call = Call(first.method, first.path, first.reply, query={**first.query, "cursor": page.next})


def list_models(memory: Memory, tenant: str | None = None, q: str | None = None) -> Flow[list[r.Model]]:
    """All models, by tenant and name, where all terms of `q` are found in what is said of them and their versions."""
    return (yield from all_pages(memory, calls.list_models(tenant, q)))


def list_all_versions(memory: Memory, tenant: str | None = None) -> Flow[list[r.Version]]:
    """The versions of all models, by tenant, model and number."""
    return (yield from all_pages(memory, calls.list_all_versions(tenant)))


def list_traffic(memory: Memory, tenant: str | None = None) -> Flow[list[r.Traffic]]:
    """The traffic policies of all models, by tenant and model."""
    return (yield from all_pages(memory, calls.list_traffic(tenant)))


def list_devices(memory: Memory) -> Flow[list[r.DeviceStatus]]:
    """The fleet's devices by id, with what replicas take of each."""
    return (yield from all_pages(memory, calls.list_devices()))


# ------------------------------------------------------------------------------------------------ inference
def signature(memory: Memory, model: str) -> Flow[Signature]:
    """What a model takes and gives, asked once."""
    known = memory.signatures.get(model)
    if known is not None:
        return known
    answer = yield Send("data", "GET", _model_path(parse_reference(model)))
    if isinstance(answer, Lost):
        raise answer.error()
    assert isinstance(answer, Answer)
    if answer.status != 200:
        raise calls.inference_error(answer.status, answer.headers, answer.content)
    memory.signatures[model] = found = msgspec.json.decode(answer.content, type=Signature)
    return found


def predict(
    memory: Memory,
    model: str,
    rows: object,
    *,
    version: VersionName | None = None,
    unit: str | None = None,
    timeout_s: float | None = None,
    outputs: list[str] | None = None,
) -> Flow[Prediction]:
    """Run a model.

    Args:
        model: ``churn``, ``churn@4``, ``churn@champion`` or ``tenant/churn``.
        rows: array (n, ...) or one row, nested lists, a pandas, polars or Arrow table, or a dict of one per input.
        version: number or alias; bypasses the traffic policy.
        unit: user or session that shall always meet the same version.
        timeout_s: deadline of the whole request.
        outputs: names of those wanted; all when left out.

    Raises:
        InvalidInput, Unauthenticated, Forbidden, NotFound, QuotaExceeded, Unavailable, DeadlineExceeded, Unreachable.
    """
    # A refusal of tensors built by a remembered signature may mean that another version serves by now: it is asked
    # for anew, and the request sent once more if it differs.
    from headrace.client import frames, tensors  # NumPy, which nothing else here needs

    if timeout_s is not None and not timeout_s > 0:
        raise InvalidInput(f"timeout_s: {timeout_s:g}, expected a number of seconds over 0", field="timeout_s")
    reference = parse_reference(model)
    if version is not None:
        reference = Reference(reference.model, version, reference.tenant)
    name = str(reference)
    remembered = name in memory.signatures
    while True:
        spec = yield from signature(memory, name)
        body, headers = tensors.encode(tensors.to_arrays(rows, spec), spec, outputs)
        if unit is not None:
            headers["x-unit"] = unit
        if timeout_s is not None:
            headers["x-request-timeout-ms"] = str(max(int(timeout_s * 1000), 1))
        path = _model_path(reference) + "/infer"
        answer = yield Send("data", "POST", path, content=body, headers=headers, timeout_s=timeout_s)
        if isinstance(answer, Lost):
            raise answer.error()
        assert isinstance(answer, Answer)
        if answer.status == 200:
            found = tensors.decode(answer.headers, answer.content)
            return replace(found, origin=frames.origin(rows))
        error = calls.inference_error(answer.status, answer.headers, answer.content)
        if not isinstance(error, InvalidInput | NotFound) or not remembered:
            raise error
        memory.signatures.pop(name, None)  # another request at the same time may have met the same
        remembered = False
        if (yield from signature(memory, name)) == spec:
            raise error


def _model_path(reference: Reference) -> str:
    name = f"{reference.tenant}%2F{reference.model}" if reference.tenant else reference.model
    return f"/v2/models/{name}" + (f"/versions/{reference.version}" if reference.version else "")


# ------------------------------------------------------------------------------------------------ registry
def push(
    memory: Memory,
    model: str,
    what: object,
    *,
    engine: r.Engine | None = None,
    signature: Signature | None = None,
    outputs: list[str] | None = None,
    nan: Literal["reject", "allow"] | None = None,
    batch_max: int | None = None,
    trust: bool = False,
    run_limit_s: float | None = None,
    metrics: dict[str, float] | None = None,
    tags: dict[str, str] | None = None,
    description: str = "",
    lineage: r.Lineage | None = None,
    golden: Golden | str | Path | None = None,
    reference: str | Path | None = None,
    label: str | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Flow[r.Outcome[r.Version]]:
    """Register a version from a file, a folder or an object (see `artifacts.pack`). What the platform has already is
    not sent again, and an upload that was cut off goes on; the same artifact with the same options as the latest
    version's gives that version back.

    Args:
        model: ``churn`` or ``tenant/churn``.
        what: path, bytes of ONNX, or an object.
        engine: guessed when left out.
        signature: what it takes and gives; read out of the model when left out.
        outputs: names of those to compute; all when left out.
        nan: whether NaN and infinities are refused or passed to the model.
        batch_max: most rows in one run of the engine.
        trust: the artifact may execute code when loaded (a pickle).
        run_limit_s: a run that takes longer has its replica killed; 60 s, or as long as somebody waits, when left out.
        metrics: numbers of the training.
        tags: free.
        description: for people.
        lineage: where it comes from: training set, code, parent; and the features that it needs.
        golden: signature tests, or a JSON file of them: run now, and passed before the version may take traffic.
        reference: Parquet, CSV or NPZ file of inputs: its statistics, and those of the model's answers to it, stay with
            the version for drift to be measured against.
        label: column of that file that is no input.
        progress: is told of bytes that have arrived, and bytes in all.
        force: send the file though the platform has it: replaces one that was damaged.

    Raises:
        InvalidInput, Unprocessable, TooLarge, Forbidden, Unreachable.
    """
    tests = read_golden(golden)
    sample = None if reference is None else (yield from send_sample(memory, reference, label, "reference"))
    packed = artifacts.pack(what)
    try:
        yield from uploads.upload(memory, packed.path, packed.digest, progress, force)
        engine = engine or packed.engine
        options = options_of(engine, outputs, nan, batch_max, trust or packed.trust, run_limit_s)
        call = calls.register(
            model,
            packed.digest,
            packed.file_name,
            engine,
            signature,
            options,
            metrics,
            tags,
            description,
            lineage,
            tests,
            sample,
        )
        try:
            return (yield from request(memory, call))
        except NotFound as error:
            if error.field != "digest":
                raise
        # Nobody needed it, and it was removed between the two.
        yield from uploads.upload(memory, packed.path, packed.digest, progress, True)
        return (yield from request(memory, call))
    finally:
        if packed.temporary:
            packed.path.unlink(missing_ok=True)


def send_sample(
    memory: Memory, file: str | Path, label: str | None, field: str, progress: Progress | None = None
) -> Flow[Sample]:
    """Send a file of rows, unless the platform has it. Raises InvalidInput where it does not exist or is empty."""
    path = Path(file)
    if not path.is_file() or path.stat().st_size == 0:
        what = "is empty" if path.is_file() else "is no file"
        raise InvalidInput(f"{field}: {path} {what}, expected Parquet, CSV or NPZ", field=field)
    digest = artifacts.digest_of(path)
    yield from uploads.upload(memory, path, digest, progress)
    return Sample(digest, path.name, label)


def attach_reference(
    memory: Memory, reference: str, data: str | Path, label: str | None = None, reason: str | None = None
) -> Flow[r.Outcome[r.Version]]:
    """Compute reference statistics of a version that has none.

    Args:
        reference: ``churn@4``.
        data: Parquet, CSV or NPZ file of inputs.
        label: its column that is no input.
        reason: for the audit.

    Raises:
        Conflict: the version has others. Unprocessable: columns are missing, too many, or of the wrong type.
    """
    sample = yield from send_sample(memory, data, label, "reference")
    return (yield from request(memory, calls.attach_reference(reference, sample, reason)))


def validate(
    memory: Memory, reference: str, golden: Golden | str | Path | None = None, reason: str | None = None
) -> Flow[r.Outcome[r.Version]]:
    """Run a version's signature tests again, or others (or a JSON file of them) in their place; its state follows."""
    return (yield from request(memory, calls.validate(reference, read_golden(golden), reason)))


def read_golden(given: Golden | str | Path | None) -> Golden | None:
    """Signature tests, out of a file where one is named. Raises InvalidInput, OSError."""
    if given is None or isinstance(given, Golden):
        return given
    try:
        return msgspec.json.decode(Path(given).read_bytes(), type=Golden)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = str(error).replace("`$", "`golden")
        hint = '{"cases": [{"inputs": [{"name", "datatype", "shape", "data"}], "outputs": [...]}], "tolerance": 1e-5}'
        raise InvalidInput(f"{given}: {text}", field="golden", hint=hint) from None


def options_of(
    engine: r.Engine | None,
    outputs: list[str] | None,
    nan: Literal["reject", "allow"] | None,
    batch_max: int | None,
    trust: bool,
    run_limit_s: float | None = None,
) -> EngineOptions | None:
    """The options that were given, None where none was: then the engine's own defaults hold."""
    if not outputs and nan is None and batch_max is None and not trust and run_limit_s is None:
        return None
    return EngineOptions(
        tuple(outputs or ()), nan or default_nan(engine), 256 if batch_max is None else batch_max, trust, run_limit_s
    )


def default_nan(engine: r.Engine | None) -> Literal["reject", "allow"]:
    """What an engine does with NaN where nobody says."""
    return "allow" if engine in ("xgboost", "lightgbm") else "reject"


# ------------------------------------------------------------------------------------------------ deployments
def create_deployment(
    memory: Memory,
    reference: str,
    *,
    replicas: int = 1,
    threads: int = 1,
    traffic: float | None = None,
    memory_mb: int | None = None,
    mode: r.DeploymentMode = "dedicated",
    tiers: Sequence[str] = (),
    spot: bool = False,
    compute: float | None = None,
    reason: str | None = None,
    wait: bool = True,
    wait_s: float = 60.0,
    watch: Callable[[r.Deployment], None] | None = None,
) -> Flow[r.Outcome[r.Deployment]]:
    """Run a version and, unless `wait` is false, wait until it is ready and has its share of the traffic.

    Args:
        reference: ``churn@4``, or ``churn`` for the latest version.
        replicas: how many processes.
        threads: of the engine, per replica.
        traffic: percent of the traffic it takes once ready.
        memory_mb: most memory of a replica, in MiB; one that takes more is killed. Of a shared one, of the model.
        mode: ``dedicated``: processes of its own; ``shared``: loaded into processes that it has in common with others
            when it is asked for; ``auto``: the one or the other, by its load.
        tiers: hardware that it may run on, any of them, such as ``["l40", "a100"]``; none: processors.
        spot: it may run on devices that the provider may take away.
        compute: reserved for each replica: cores, or accelerators with a T4 for 1.
        reason: for the audit.
        wait: whether to wait.
        wait_s: how long at most.
        watch: is shown the deployment at every look.

    Raises:
        Unprocessable: it failed, with what it said.
        Unavailable: it was not ready in time.
    """
    call = calls.deploy(reference, replicas, threads, traffic, reason, memory_mb, mode, tiers, spot, compute)
    outcome = yield from request(memory, call)
    found = outcome.result
    if not wait:
        return outcome
    name = f"{found.tenant}/{found.model}@{found.version}"
    end = time.monotonic() + wait_s
    # Twice in a row: what the control plane has written down reaches the routers some milliseconds later.
    settled = 0
    while settled < 2:
        if found.state == "failed":
            raise Unprocessable(f"{name} failed: {found.detail}", hint=f"headrace undeploy {name} --yes")
        if time.monotonic() > end:
            raise Unavailable(
                f"{name} is not ready after {wait_s:g} s: {found.state}{found.detail and ', ' + found.detail}",
                hint="it goes on starting; look with: headrace status",
            )
        yield Pause(LOOK_S)
        found = yield from request(memory, calls.show_deployment(name))
        if watch is not None:
            watch(found)
        enough = found.ready >= (min(found.replicas, 1) if found.placed == "shared" else found.replicas)
        ready = enough and (yield from _has_traffic(memory, found, traffic))
        settled = settled + 1 if ready else 0
    return r.Outcome(found, outcome.change)


def _has_traffic(memory: Memory, found: r.Deployment, wanted: float | None) -> Flow[bool]:
    """Whether a ready version has the share that it was to take; a model's first version takes all."""
    if found.traffic_percent > 0 or wanted == 0:
        return True
    if wanted is not None:
        return False
    model = yield from request(memory, calls.show_model(f"{found.tenant}/{found.model}"))
    return bool(model.serving)


def deploy(
    memory: Memory,
    reference: str,
    *,
    replicas: int = 1,
    threads: int = 1,
    traffic: float | None = None,
    memory_mb: int | None = None,
    mode: r.DeploymentMode = "dedicated",
    tiers: Sequence[str] = (),
    spot: bool = False,
    compute: float | None = None,
    reason: str | None = None,
    wait_s: float | None = 60.0,
    watch: Callable[[r.Deployment], None] | None = None,
) -> Flow[r.Deployment]:
    """`create_deployment`, for its result only. `wait_s` None: do not wait."""
    outcome = yield from create_deployment(
        memory,
        reference,
        replicas=replicas,
        threads=threads,
        traffic=traffic,
        memory_mb=memory_mb,
        mode=mode,
        tiers=tiers,
        spot=spot,
        compute=compute,
        reason=reason,
        wait=wait_s is not None,
        wait_s=wait_s or 0.0,
        watch=watch,
    )
    return outcome.result
