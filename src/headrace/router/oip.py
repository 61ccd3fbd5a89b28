"""The rest of the Open Inference Protocol over HTTP: health, metadata, statistics, repository; and who is at fault
when an inference request names nothing that can answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec

from headrace import __version__
from headrace.core import frames
from headrace.core.report import Command
from headrace.core.snapshot import ModelRoute
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
        return http.refuse(seq, replies.error(405, "use GET"))
    response = replies.json(value, status)
    http.reply(seq, response[: response.index(b"\r\n\r\n") + 4] if method == b"HEAD" else response)


def find_model(table: Table, name: str, tenant: int) -> ModelRoute | str:
    """The model that a tenant means by a name, or why there is none: ``forbidden`` or ``missing``."""
    candidates = [m for m in table.snapshot.models if name in (m.name, m.id)]
    mine = [m for m in candidates if m.tenant == tenant] or [m for m in candidates if tenant in m.grants]
    return mine[0] if mine else "forbidden" if candidates else "missing"


def _model(http: Http, seq: int, method: bytes, parts: list[str], tenant: Tenant) -> None:
    name, rest = parts[0], parts[1:]
    model = find_model(http.router.table, name, tenant.index)
    if isinstance(model, str):
        status, text = (403, "belongs to another tenant") if model == "forbidden" else (404, "does not exist")
        return http.refuse(seq, replies.error(status, f"model {name!r} {text}"), tenant.index)
    version: int | None = None
    if rest[:1] == ["versions"]:
        wanted = rest[1] if len(rest) > 1 else ""
        version = next((v.version for v in model.versions if str(v.version) == wanted), None)
        if version is None:
            return http.refuse(seq, replies.error(404, f"model {name!r} has no deployed version {wanted[:40]!r}"))
        rest = rest[2:]
    if rest == ["infer"]:
        if method != b"POST":
            return http.refuse(seq, replies.error(405, "use POST"), tenant.index)
        return http.refuse(seq, replies.error(503, f"model {name!r} has no version ready"), tenant.index)
    if rest == ["stats"]:
        return _run(http, seq, _statistics(http, seq, [model], version))
    if rest == ["ready"]:
        ready = is_ready(model, version)
        return _get(http, seq, method, {"name": name, "ready": ready}, 200 if ready else 503)
    if rest == []:
        return _get(http, seq, method, *_metadata(model, name, version))
    if rest == ["config"]:
        return _get(http, seq, method, *_config(model, name, version))
    http.refuse(seq, replies.error(404, f"no such path under model {name!r}: {'/'.join(rest)}"))


def is_ready(model: ModelRoute, version: int | None) -> bool:
    """Whether a request would find a replica."""
    return any(v.endpoints and version in (None, v.version) for v in model.versions)


def serving(model: ModelRoute, version: int | None) -> Any:
    """The version that speaks for the model: the one asked for, else that with most of the traffic, else the newest."""
    if version is None and model.split:
        shares: dict[int, int] = {}
        start = 0
        for part in model.split:
            shares[part.version] = shares.get(part.version, 0) + part.end - start
            start = part.end
        version = max(shares, key=lambda v: shares[v])
    found = [v for v in model.versions if v.version == version]
    return found[0] if found else (model.versions[-1] if model.versions else None)


def _metadata(model: ModelRoute, name: str, version: int | None) -> tuple[object, int]:
    chosen = serving(model, version)
    if chosen is None:
        return {"error": f"model {name!r} has no version deployed"}, 503
    tensors = msgspec.json.decode(chosen.metadata)
    versions = [str(version)] if version is not None else [str(v.version) for v in model.versions]
    platform = PLATFORMS.get(chosen.engine, chosen.engine)
    return {"name": name, "versions": versions, "platform": platform, **tensors}, 200


def _config(model: ModelRoute, name: str, version: int | None) -> tuple[object, int]:
    chosen = serving(model, version)
    if chosen is None:
        return {"error": f"model {name!r} has no version deployed"}, 503
    tensors = msgspec.json.decode(chosen.metadata)
    return config_of(name, chosen.engine, tensors), 200


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
    model = target.model
    if not model.split:
        return replies.error(503, f"model {model.name!r} has no version in traffic yet", retry_after_s=1)
    return replies.error(503, f"model {model.name!r}: no replica of the chosen version is ready", retry_after_s=1)


# ------------------------------------------------------------------------------------------------ repository
def _repository(
    http: Http, seq: int, method: bytes, parts: list[str], body: bytes, tenant: Tenant, authorization: bytes | None
) -> None:
    table = http.router.table
    if parts == ["index"]:
        if method not in (b"POST", b"GET"):
            return http.refuse(seq, replies.error(405, "use POST"))
        try:
            only_ready = bool((msgspec.json.decode(body) if body else {}).get("ready"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError):
            return http.refuse(seq, replies.error(400, 'expected a JSON object, such as {"ready": true}'))
        return http.reply(seq, replies.json(index_of(table.visible(tenant.index), only_ready)))
    if len(parts) == 3 and parts[0] == "models" and parts[2] in ("load", "unload"):
        if method != b"POST":
            return http.refuse(seq, replies.error(405, "use POST"))
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
