"""The rest of the Open Inference Protocol over HTTP: health, metadata, statistics, repository; and who is at fault
when an inference request names nothing that can answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec

from headrace import __version__
from headrace.core import frames
from headrace.core.errors import Forbidden, HeadraceError, NotFound, Unavailable
from headrace.core.report import Command
from headrace.core.snapshot import ModelRoute, VersionRoute
from headrace.router import replies
from headrace.router.link import Arm, Tenant
from headrace.router.table import Table, Target

if TYPE_CHECKING:
    from headrace.router.http import Http

EXTENSIONS = ["binary_tensor_data", "statistics", "model_repository", "model_configuration"]
SERVER = {"name": "headrace", "version": __version__, "extensions": EXTENSIONS}
PLATFORMS = {"onnx": "onnxruntime_onnx", "xgboost": "xgboost", "lightgbm": "lightgbm", "sklearn": "sklearn"}
STATISTICS_TIMEOUT_S = 5.0
_tasks: set[asyncio.Task[None]] = set()


def answer(
    http: Http, seq: int, method: bytes, url: bytes, body: bytes, tenant: Tenant | None, authorization: bytes | None
) -> None:
    """Answer whatever is not an inference request to a known model."""
    try:
        path = urlsplit(url).path
        parts = [unquote(part.decode()) for part in path.strip(b"/").split(b"/")]
    except (ValueError, UnicodeDecodeError):
        return http.refuse(seq, replies.error(400, "the URL is not valid"))
    table = http.router.table
    if parts == ["v2", "health", "live"]:
        return _get(http, seq, method, {"live": True})
    if parts == ["v2", "health", "ready"]:
        ready = table.snapshot.epoch > 0 and not http.router.draining
        return _get(http, seq, method, {"ready": ready}, 200 if ready else 503)
    if parts == ["v2"]:
        return _get(http, seq, method, SERVER)
    if parts[:1] != ["v2"] or parts[1:2] not in (["models"], ["repository"]) or not any(parts[2:]):
        return http.refuse(seq, replies.error(404, f"no such path: {path.decode('latin-1')}"))
    if tenant is None:
        return http.refuse(seq, replies.UNAUTHENTICATED)
    if parts[1] == "repository":
        return _repository(http, seq, method, parts[2:], body, tenant, authorization)
    if parts[2:] == ["stats"]:
        return _run(http, seq, _statistics(http, seq, table.visible(tenant.index), None))
    return _model(http, seq, method, parts[2:], tenant)


def _get(http: Http, seq: int, method: bytes, value: object, status: int = 200) -> None:
    if method not in (b"GET", b"HEAD"):
        return http.refuse(seq, replies.method_not_allowed("GET, HEAD"))
    response = replies.json(value, status)
    http.reply(seq, response[: response.index(b"\r\n\r\n") + 4] if method == b"HEAD" else response)


def find_model(table: Table, name: str, tenant: int) -> ModelRoute | str:
    """The model that a tenant means by a name, or why there is none: ``forbidden`` or ``missing``."""
    candidates = [m for m in table.snapshot.models.values() if name in (m.name, m.id)]
    mine = [m for m in candidates if m.tenant == tenant] or [m for m in candidates if tenant in m.grants]
    return mine[0] if mine else "forbidden" if candidates else "missing"


def resolve(table: Table, name: str, version: str | None, tenant: int) -> tuple[ModelRoute, int | None]:
    """The model, and the number of the version where one is named, that a tenant means.

    Raises:
        Forbidden: the model is another tenant's.
        NotFound: there is no such model, or no such version of it is deployed.
    """
    model = find_model(table, name, tenant)
    if model == "forbidden":
        raise Forbidden(f"model {name!r} belongs to another tenant", field="model")
    if isinstance(model, str):
        raise NotFound(f"model {name!r} does not exist", field="model")
    if version is None:
        return model, None
    number = next((str(alias.version) for alias in model.aliases if alias.name == version), version)
    for deployed in model.versions:
        if number == str(deployed.version):
            return model, deployed.version
    raise NotFound(f"model {name!r} has no deployed version {version[:40]!r}", field="version")


def _model(http: Http, seq: int, method: bytes, parts: list[str], tenant: Tenant) -> None:
    name, rest = parts[0], parts[1:]
    wanted = None
    if rest[:1] == ["versions"]:
        wanted, rest = rest[1] if len(rest) > 1 else "", rest[2:]
    try:
        model, version = resolve(http.router.table, name, wanted, tenant.index)
    except HeadraceError as error:
        return http.refuse(seq, replies.error(error.status, error.message), tenant.index)
    if rest == ["infer"]:
        if method != b"POST":
            return http.refuse(seq, replies.method_not_allowed("POST"), tenant.index)
        return http.refuse(seq, replies.error(503, f"model {name!r} has no version ready"), tenant.index)
    if rest == ["stats"]:
        return _run(http, seq, _statistics(http, seq, [model], version))
    if rest == ["ready"]:
        ready = is_ready(model, version)
        return _get(http, seq, method, {"name": name, "ready": ready}, 200 if ready else 503)
    if rest in ([], ["config"]):
        try:
            describe = config if rest else metadata
            return _get(http, seq, method, describe(model, name, version))
        except HeadraceError as error:
            return http.refuse(seq, replies.error(error.status, error.message), tenant.index)
    http.refuse(seq, replies.error(404, f"no such path under model {name!r}: {'/'.join(rest)}"))


def is_ready(model: ModelRoute, version: int | None) -> bool:
    """Whether a request would find a replica."""
    return any(v.endpoints and version in (None, v.version) for v in model.versions)


def serving(model: ModelRoute, version: int | None) -> VersionRoute:
    """The version that speaks for the model: the one asked for, else that with most of the traffic, else the newest.
    Raises Unavailable where none is deployed."""
    if version is None and model.split:
        shares: dict[int, int] = {}
        start = 0
        for part in model.split:
            shares[part.version] = shares.get(part.version, 0) + part.end - start
            start = part.end
        version = max(shares, key=lambda v: shares[v])
    if not model.versions:
        raise Unavailable(f"model {model.name!r} has no version deployed")
    return next((v for v in model.versions if v.version == version), model.versions[-1])


def metadata(model: ModelRoute, name: str, version: int | None) -> dict[str, Any]:
    """The model's metadata. Raises Unavailable."""
    chosen = serving(model, version)
    versions = [str(version)] if version is not None else [str(v.version) for v in model.versions]
    platform = PLATFORMS.get(chosen.engine, chosen.engine)
    return {"name": name, "versions": versions, "platform": platform, **msgspec.json.decode(chosen.metadata)}


def config(model: ModelRoute, name: str, version: int | None) -> dict[str, Any]:
    """The model's configuration. Raises Unavailable."""
    chosen = serving(model, version)
    return config_of(name, chosen.engine, msgspec.json.decode(chosen.metadata))


def config_of(name: str, engine: str, tensors: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Triton's model configuration, as far as it says something here."""

    def entry(tensor: dict[str, Any]) -> dict[str, Any]:
        kind = "TYPE_STRING" if tensor["datatype"] == "BYTES" else f"TYPE_{tensor['datatype']}"
        return {"name": tensor["name"], "data_type": kind, "dims": tensor["shape"]}

    return {
        "name": name,
        "platform": PLATFORMS.get(engine, engine),
        "backend": engine,
        "max_batch_size": 0,
        "input": [entry(t) for t in tensors["inputs"]],
        "output": [entry(t) for t in tensors["outputs"]],
        "dynamic_batching": {},
    }


def not_ready(target: Target) -> bytes:
    """Why a request to a known model finds no replica."""
    return replies.error(503, why_not_ready(target), retry_after_s=1)


def why_not_ready(target: Target) -> str:
    """The same as text."""
    model = target.model
    if not model.split:
        return f"model {model.name!r} has no version in traffic yet"
    return f"model {model.name!r}: no replica of the chosen version is ready"


# ------------------------------------------------------------------------------------------------ repository
def _repository(
    http: Http, seq: int, method: bytes, parts: list[str], body: bytes, tenant: Tenant, authorization: bytes | None
) -> None:
    table = http.router.table
    if parts == ["index"]:
        if method not in (b"POST", b"GET"):
            return http.refuse(seq, replies.method_not_allowed("POST, GET"))
        try:
            only_ready = bool((msgspec.json.decode(body) if body else {}).get("ready"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError):
            return http.refuse(seq, replies.error(400, 'expected a JSON object, such as {"ready": true}'))
        return http.reply(seq, replies.json(index_of(table.visible(tenant.index), only_ready)))
    if len(parts) == 3 and parts[0] == "models" and parts[2] in ("load", "unload"):
        if method != b"POST":
            return http.refuse(seq, replies.method_not_allowed("POST"))
        found = table.key_of(authorization)
        command = Command(parts[2], parts[1], tenant.index, found[1] if found else "viewer")
        return _run(http, seq, _command(http, seq, command))
    http.refuse(seq, replies.error(404, "no such path under /v2/repository"))


def index_of(models: list[ModelRoute], only_ready: bool) -> list[dict[str, str]]:
    """The repository index: a row per deployed version."""
    rows = []
    for model in models:
        for version in model.versions:
            if version.endpoints or not only_ready:
                state, reason = ("READY", "") if version.endpoints else ("UNAVAILABLE", "no replica is ready")
                rows.append({"name": model.name, "version": str(version.version), "state": state, "reason": reason})
    return rows


async def _command(http: Http, seq: int, command: Command) -> None:
    peer = http.router.peer
    if peer is None:
        return http.refuse(seq, replies.error(503, "the control plane is not there"))
    reply = await peer.command(command)
    if reply.status == 200:
        http.reply(seq, replies.json({}))
    else:
        http.refuse(seq, replies.error(reply.status, reply.message))


def _run(http: Http, seq: int, work: Any) -> None:
    """Run what must wait for others; whatever goes wrong is an answer too."""

    async def guarded() -> None:
        try:
            await work
        except Exception:
            http.refuse(seq, replies.error(500, "internal error"))
            raise

    task = asyncio.get_running_loop().create_task(guarded())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


# ------------------------------------------------------------------------------------------------ statistics
class _Collector:
    """Waits for one replica's statistics."""

    gone = False

    def __init__(self) -> None:
        self.future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def answer(self, seq: int, kind: int, flags: int, status: int, meta: bytes, body: bytes) -> None:
        """The replica's statistics."""
        if not self.future.done():
            self.future.set_result(body if kind == frames.REPLY else None)

    def fail(self, seq: int, status: int, reason: str) -> None:
        """The replica is lost: its counts went with it."""
        if not self.future.done():
            self.future.set_result(None)


async def _statistics(http: Http, seq: int, models: list[ModelRoute], version: int | None) -> None:
    http.reply(seq, replies.json({"model_stats": await collect_statistics(http.router.table, models, version)}))


async def collect_statistics(table: Table, models: list[ModelRoute], version: int | None) -> list[dict[str, Any]]:
    """Per deployed version the sum of its replicas' statistics."""
    rows = []
    for model in models:
        for deployed in model.versions:
            if version not in (None, deployed.version):
                continue
            asked = []
            for endpoint in deployed.endpoints:
                link = table.links.get(endpoint.replica)
                if link is not None and link.up:
                    collector = _Collector()
                    link.ask(collector, 0, Arm(model.id, deployed.version), frames.STATISTICS, endpoint.slot)
                    asked.append(collector.future)
            done = [await future for future in asked]
            found = [msgspec.json.decode(body) for body in done if body]
            if found:
                rows.append(_sum(found))
    return rows


def _sum(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One entry out of several replicas'."""
    total = rows[0]
    for row in rows[1:]:
        total["last_inference"] = max(total["last_inference"], row["last_inference"])
        for name in ("inference_count", "execution_count"):
            total[name] += row[name]
        for name, duration in row["inference_stats"].items():
            for part in ("count", "ns"):
                total["inference_stats"][name][part] += duration[part]
        sizes = {batch["batch_size"]: batch for batch in total["batch_stats"]}
        for batch in row["batch_stats"]:
            mine = sizes.setdefault(batch["batch_size"], batch)
            if mine is not batch:
                for name in ("compute_input", "compute_infer", "compute_output"):
                    for part in ("count", "ns"):
                        mine[name][part] += batch[name][part]
        total["batch_stats"] = [sizes[size] for size in sorted(sizes)]
    return total
