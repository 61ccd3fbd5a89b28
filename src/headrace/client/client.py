"""The Python client: one platform, seen from a program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from headrace.client import artifacts, calls
from headrace.client.calls import Call
from headrace.client.config import resolve
from headrace.core import resources as r
from headrace.core.errors import InvalidInput, NotFound, Unavailable, Unprocessable, Unreachable
from headrace.core.names import parse_reference
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions

Progress = Callable[[int, int], None]
"""(bytes sent, bytes in all)."""
RETRY_S = 10.0
"""How long a request to a control plane that is away is tried again: as long as one takes to restart."""


class Client:
    """A connection to a platform.

    Args:
        url: of the inference API; see `config.resolve` for where it and the others come from when left out.
        api_key: ``hr_...``.
        control_url: of the control plane.
        timeout_s: of each request to the control plane.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        control_url: str | None = None,
        timeout_s: float = 90.0,
    ) -> None:
        self.access = resolve(url, api_key, control_url)
        headers = {"authorization": f"Bearer {self.access.api_key}"}
        self._control = httpx.Client(base_url=self.access.control_url, headers=headers, timeout=timeout_s)
        self._data = httpx.Client(base_url=self.access.url, headers=headers, timeout=None)
        self._signatures: dict[str, Signature] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._control.close()
        self._data.close()

    def call(self, call: Call[Any]) -> Any:
        """Send a request of `calls` to the control plane; those that are safe to send again are, while it is away.

        Raises:
            HeadraceError: what the platform said; Unreachable when it does not answer.
        """
        headers = {"idempotency-key": call.key} if call.key else {}
        content = msgspec.json.encode(call.body) if call.body is not None else None
        if content is not None:
            headers["content-type"] = "application/json"
        safe = call.method == "GET" or call.key is not None
        end = time.monotonic() + RETRY_S
        connected = False
        while True:
            try:
                reply = self._control.request(
                    call.method, call.path, params=call.query, content=content, headers=headers
                )
                return calls.read(call.reply, reply.status_code, reply.content)
            except httpx.ConnectError as error:
                # Nobody there at all: only one that was there a moment ago is waited for.
                if not connected or time.monotonic() > end:
                    raise _unreachable(self.access.control_url, error) from None
            except httpx.TransportError as error:
                connected = True
                if not safe or time.monotonic() > end:
                    raise _unreachable(self.access.control_url, error) from None
            time.sleep(0.1)

    # ------------------------------------------------------------------------------------------------ inference
    def signature(self, model: str) -> Signature:
        """What a model takes and gives, asked once."""
        if model not in self._signatures:
            reference = parse_reference(model)
            reply = self._get(_model_path(reference.model, reference.tenant, reference.version))
            if reply.status_code != 200:
                from headrace.client.predict import decode

                decode(reply.status_code, reply.headers, reply.content)
            self._signatures[model] = msgspec.json.decode(reply.content, type=Signature)
        return self._signatures[model]

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._data.get(path)
        except httpx.TransportError as error:
            raise _unreachable(self.access.url, error) from None

    def predict(
        self,
        model: str,
        rows: object,
        *,
        version: int | None = None,
        unit: str | None = None,
        timeout_s: float | None = None,
        outputs: list[str] | None = None,
    ) -> Any:
        """Run a model.

        Args:
            model: ``churn``, ``churn@4`` or ``tenant/churn``.
            rows: array (n, ...) or one row, nested lists, a pandas, polars or Arrow table, or a dict of one per input.
            version: bypasses the traffic policy.
            unit: user or session that shall always meet the same version.
            timeout_s: deadline of the whole request.
            outputs: names of those wanted; all when left out.

        Returns:
            A `Prediction`.

        Raises:
            InvalidInput, Unauthenticated, Forbidden, NotFound, QuotaExceeded, Unavailable, DeadlineExceeded,
            Unreachable.
        """
        from headrace.client import predict

        reference = parse_reference(model)
        number = version or reference.version
        name = f"{reference.tenant}/{reference.model}" if reference.tenant else reference.model
        signature = self.signature(f"{name}@{number}" if number else name)
        body, headers = predict.encode(predict.to_arrays(rows, signature), signature, outputs)
        if unit is not None:
            headers["x-unit"] = unit
        if timeout_s is not None:
            headers["x-request-timeout-ms"] = str(max(int(timeout_s * 1000), 1))
        try:
            reply = self._data.post(
                _model_path(reference.model, reference.tenant, number) + "/infer", content=body, headers=headers
            )
        except httpx.TransportError as error:
            raise _unreachable(self.access.url, error) from None
        try:
            return predict.decode(reply.status_code, reply.headers, reply.content)
        except (InvalidInput, NotFound):
            self._signatures.clear()  # perhaps another version serves by now
            raise

    # ------------------------------------------------------------------------------------------------ registry
    def push(
        self,
        model: str,
        what: object,
        *,
        engine: r.Engine | None = None,
        outputs: list[str] | None = None,
        nan: str | None = None,
        batch_max: int | None = None,
        trust: bool = False,
        metrics: dict[str, float] | None = None,
        tags: dict[str, str] | None = None,
        description: str = "",
        progress: Progress | None = None,
    ) -> r.Outcome[r.Version]:
        """Register a version from a file, a folder or an object; see `artifacts.pack`. What the platform has already is
        not sent again."""
        packed = artifacts.pack(what)
        try:
            self._upload(packed.path, packed.digest, progress)
        finally:
            if packed.temporary:
                packed.path.unlink(missing_ok=True)
        options = None
        if outputs or nan or batch_max or trust or packed.trust:
            chosen = engine or packed.engine
            default = "allow" if chosen in ("xgboost", "lightgbm") else "reject"
            options = msgspec.convert(
                {
                    "outputs": outputs or [],
                    "nan": nan or default,
                    "batch_max": batch_max or 256,
                    "trust": trust or packed.trust,
                },
                EngineOptions,
            )
        outcome: r.Outcome[r.Version] = self.call(
            calls.register(
                model,
                packed.digest,
                packed.file_name,
                engine or packed.engine,
                options,
                metrics,
                tags,
                description,
            )
        )
        return outcome

    def _upload(self, path: Path, digest: str, progress: Progress | None) -> None:
        size = path.stat().st_size
        url = f"/api/v1/artifacts/{digest}"

        def chunks() -> Iterator[bytes]:
            sent = 0
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk
                    sent += len(chunk)
                    if progress is not None:
                        progress(sent, size)

        try:
            if self._control.head(url).status_code == 200:
                if progress is not None:
                    progress(size, size)
                return
            headers = {"content-length": str(size)}
            reply = self._control.put(url, content=chunks(), headers=headers)
        except httpx.TransportError as error:
            raise _unreachable(self.access.control_url, error) from None
        calls.read(r.Artifact, reply.status_code, reply.content)

    # ------------------------------------------------------------------------------------------------ deployments
    def deploy(
        self,
        reference: str,
        *,
        replicas: int = 1,
        threads: int = 1,
        traffic: float | None = None,
        reason: str | None = None,
        wait_s: float | None = 60.0,
        watch: Callable[[r.Deployment], None] | None = None,
    ) -> r.Deployment:
        """Deploy a version and wait until it is ready and has its share of the traffic.

        Args:
            reference: ``churn@4``, or ``churn`` for the latest.
            replicas: how many processes.
            threads: of the engine, per replica.
            traffic: percent of the traffic it takes once ready.
            reason: for the audit.
            wait_s: how long to wait; None: not at all.
            watch: is shown the deployment at every look.

        Raises:
            Unprocessable: it failed, with what it said.
            Unavailable: it was not ready in time.
        """
        outcome: r.Outcome[r.Deployment] = self.call(calls.deploy(reference, replicas, threads, traffic, reason))
        found = outcome.result
        if wait_s is None:
            return found
        tenant = parse_reference(reference).tenant
        name = f"{tenant}/{found.model}@{found.version}" if tenant else f"{found.model}@{found.version}"
        end = time.monotonic() + wait_s
        while not _settled(found, traffic):
            if found.state == "failed":
                raise Unprocessable(f"{name} failed: {found.detail}", hint="push a version that loads")
            if time.monotonic() > end:
                raise Unavailable(f"{name} is not ready after {wait_s:g} s: {found.state}, {found.detail}")
            time.sleep(0.05)
            found = self.call(calls.show_deployment(name))
            if watch is not None:
                watch(found)
        return found

    # ------------------------------------------------------------------------------------------------ the rest
    def scale(self, reference: str, replicas: int, reason: str | None = None) -> r.Outcome[r.Deployment]:
        """Want another number of replicas."""
        outcome: r.Outcome[r.Deployment] = self.call(calls.scale(reference, replicas, reason))
        return outcome

    def undeploy(self, reference: str) -> r.Outcome[r.Deployment]:
        """Want a version to run no more."""
        outcome: r.Outcome[r.Deployment] = self.call(calls.undeploy(reference))
        return outcome

    def set_traffic(self, model: str, weights: dict[int, float], reason: str | None = None) -> r.Outcome[r.Traffic]:
        """Split a model's traffic: version -> percent."""
        texts = {str(version): percent for version, percent in weights.items()}
        outcome: r.Outcome[r.Traffic] = self.call(calls.set_traffic(model, texts, reason))
        return outcome

    def rollback(self, model: str, reason: str | None = None) -> r.Outcome[r.Traffic]:
        """Put back the split before the one in force."""
        outcome: r.Outcome[r.Traffic] = self.call(calls.rollback(model, reason))
        return outcome

    def status(self) -> r.Status:
        """The platform at a glance."""
        found: r.Status = self.call(calls.status())
        return found


def _settled(found: r.Deployment, traffic: float | None) -> bool:
    """Ready in full, and with the traffic that it was to take."""
    if found.ready < found.replicas:
        return False
    return not traffic or found.traffic_percent > 0


def _model_path(model: str, tenant: str | None, version: int | None) -> str:
    name = f"{tenant}%2F{model}" if tenant else model
    return f"/v2/models/{name}" + (f"/versions/{version}" if version else "")


def _unreachable(url: str, error: Exception) -> Unreachable:
    return Unreachable(f"{url} does not answer: {error}", hint="is the platform running? headrace up")
