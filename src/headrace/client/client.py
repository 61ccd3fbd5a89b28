"""The Python client: one platform, seen from a program. `Client` and `AsyncClient` have the same operations, written
once as `flows`; each class only drives them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

import httpx

from headrace.client import calls, flows, imports, optimizing
from headrace.client.calls import Call
from headrace.client.config import Access, resolve
from headrace.client.fleet import flows as fleet
from headrace.client.steps import Answer, Flow, Lost, Memory, Send, request

if TYPE_CHECKING:
    from typing import Self

P = ParamSpec("P")
T = TypeVar("T")
CHUNK_BYTES = 1 << 20
CONNECT_S = 5.0
INFERENCE_S = 3600.0
"""Seconds that an inference may take where the caller sets no deadline; the platform's own limits are far below."""


class Drives(Protocol):
    """What carries flows out."""

    memory: Memory


D = TypeVar("D", bound=Drives)


class Bound(Generic[D]):
    """Operations that belong to a client."""

    def __init__(self, driver: D) -> None:
        self._driver = driver


class operation(Generic[P, T]):
    """A flow as a method: of a `Client` it returns the result, of an `AsyncClient` an awaitable of it."""

    def __init__(self, flow: Callable[Concatenate[Memory, P], Flow[T]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, at: None, owner: type) -> operation[P, T]: ...
    @overload
    def __get__(self, at: Bound[Client], owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, at: Bound[AsyncClient], owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, at: Any, owner: type) -> Any:
        """Bind to a client's driver."""
        if at is None:
            return self
        flow, driver = self._flow, at._driver

        @wraps(flow)
        def run(*args: P.args, **kwargs: P.kwargs) -> Any:
            return driver.run(flow(driver.memory, *args, **kwargs))

        return run


def one(call: Callable[P, Call[T]]) -> operation[P, T]:
    """The operation that is a single request of `calls`."""

    @wraps(call)
    def flow(memory: Memory, /, *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        return request(memory, call(*args, **kwargs))

    return operation(flow)


class Models(Bound[D]):
    """The registry."""

    push = operation(flows.push)
    import_ = operation(imports.import_)
    list = operation(flows.list_models)
    show = one(calls.show_model)
    update = one(calls.update_model)
    versions = one(calls.list_versions)
    all_versions = operation(flows.list_all_versions)
    show_version = one(calls.show_version)
    approve = one(calls.approve)
    retire = one(calls.retire)
    validate = operation(flows.validate)
    attach_reference = operation(flows.attach_reference)
    reference = one(calls.show_reference)
    optimize = operation(optimizing.optimize)
    optimization = one(calls.show_optimization)
    delete = one(calls.delete_version)
    alias = one(calls.set_alias)
    unalias = one(calls.remove_alias)
    diff = one(calls.diff)
    grant = one(calls.grant)
    revoke = one(calls.revoke_grant)


class Jobs(Bound[D]):
    """Work that takes longer than a request."""

    list = one(calls.list_jobs)
    show = one(calls.show_job)
    wait = operation(optimizing.wait_for)
    cancel = one(calls.cancel_job)


class Artifacts(Bound[D]):
    """What versions are made of, and what is on its way in."""

    list = one(calls.list_artifacts)
    collect = one(calls.collect_artifacts)
    uploads = one(calls.list_uploads)
    cancel = one(calls.cancel_upload)


class Deployments(Bound[D]):
    """Versions as they run."""

    create = operation(flows.create_deployment)
    list = one(calls.list_deployments)
    show = one(calls.show_deployment)
    scale = one(calls.scale)
    remove = one(calls.undeploy)


class Traffic(Bound[D]):
    """Which version answers whom."""

    list = operation(flows.list_traffic)
    show = one(calls.show_traffic)
    set = one(calls.set_traffic)
    rollback = one(calls.rollback)
    pin = one(calls.pin)
    unpin = one(calls.unpin)
    history = one(calls.traffic_history)


class Quarantine(Bound[D]):
    """Inputs that have killed replicas, and are refused."""

    list = one(calls.list_quarantined)
    lift = one(calls.lift_quarantine)


class Tenants(Bound[D]):
    """Teams."""

    list = one(calls.list_tenants)
    show = one(calls.show_tenant)
    create = one(calls.create_tenant)
    update = one(calls.update_tenant)


class Keys(Bound[D]):
    """API keys."""

    list = one(calls.list_keys)
    show = one(calls.show_key)
    create = one(calls.create_key)
    rotate = one(calls.rotate_key)
    revoke = one(calls.revoke_key)


class Audit(Bound[D]):
    """The audit's hash chain."""

    head = one(calls.audit_head)
    verify = one(calls.verify_audit)


class Fleet(Bound[D]):
    """The platform as files."""

    plan = operation(fleet.plan)
    apply = operation(fleet.apply)
    export = operation(fleet.export)


class Operations(Bound[D]):
    """What both clients can do.

    Args:
        url: of the inference API; see `config.resolve` for where it and the others come from when left out.
        api_key: ``hr_...``.
        control_url: of the control plane.
        timeout_s: of each request to the control plane.
    """

    predict = operation(flows.predict)
    signature = operation(flows.signature)
    call = operation(request)
    status = one(calls.status)
    changes = one(calls.list_changes)
    devices = operation(flows.list_devices)
    placement = one(calls.placement)
    push = operation(flows.push)
    deploy = operation(flows.deploy)
    scale = one(calls.scale)
    undeploy = one(calls.undeploy)
    set_traffic = one(calls.set_traffic)
    rollback = one(calls.rollback)

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        control_url: str | None = None,
        timeout_s: float = 90.0,
    ) -> None:
        driver: Any = self
        super().__init__(driver)
        self.access: Access = resolve(url, api_key, control_url)
        self.memory = Memory()
        self.timeout_s = timeout_s
        self.models: Models[D] = Models(driver)
        self.jobs: Jobs[D] = Jobs(driver)
        self.artifacts: Artifacts[D] = Artifacts(driver)
        self.deployments: Deployments[D] = Deployments(driver)
        self.traffic: Traffic[D] = Traffic(driver)
        self.quarantine: Quarantine[D] = Quarantine(driver)
        self.tenants: Tenants[D] = Tenants(driver)
        self.keys: Keys[D] = Keys(driver)
        self.audit: Audit[D] = Audit(driver)
        self.fleet: Fleet[D] = Fleet(driver)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.access.url!r}, control_url={self.access.control_url!r})"

    def _options(self, plane: str) -> dict[str, Any]:
        """Of an httpx client for one plane."""
        return {
            "base_url": self.access.control_url if plane == "control" else self.access.url,
            "headers": {"authorization": f"Bearer {self.access.api_key}"},
            "timeout": httpx.Timeout(self.timeout_s if plane == "control" else INFERENCE_S, connect=CONNECT_S),
        }

    def _arguments(self, send: Send) -> dict[str, Any]:
        """Of an httpx request; its file is the driver's to read."""
        given: dict[str, Any] = {"params": send.query or None, "headers": send.headers, "content": send.content}
        if send.timeout_s is not None:
            # The platform's own 504 says more than a time-out here: give it time to arrive.
            given["timeout"] = httpx.Timeout(send.timeout_s + CONNECT_S, connect=CONNECT_S)
        return given

    def _lost(self, send: Send, error: httpx.TransportError) -> Lost:
        url = self.access.control_url if send.plane == "control" else self.access.url
        refused = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        return Lost(url, str(error) or type(error).__name__, refused)


class Client(Operations["Client"]):
    """A connection to a platform. Safe to share between threads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http = {plane: httpx.Client(**self._options(plane)) for plane in ("control", "data")}

    def run(self, flow: Flow[T]) -> T:
        """Carry a flow out."""
        answer: Answer | Lost | None = None
        try:
            while True:
                step = flow.send(answer)
                answer = None
                if isinstance(step, Send):
                    answer = self._send(step)
                else:
                    time.sleep(step.seconds)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    def _send(self, send: Send) -> Answer | Lost:
        arguments = self._arguments(send)
        if send.file is not None:
            arguments["content"] = _chunks(send)
        try:
            reply = self._http[send.plane].request(send.method, send.path, **arguments)
        except httpx.TransportError as error:
            return self._lost(send, error)
        return Answer(reply.status_code, reply.headers, reply.content)

    def close(self) -> None:
        """Close the connections."""
        for http in self._http.values():
            http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(Operations["AsyncClient"]):
    """A connection to a platform, for asyncio: every operation of `Client`, awaited."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http = {plane: httpx.AsyncClient(**self._options(plane)) for plane in ("control", "data")}

    async def run(self, flow: Flow[T]) -> T:
        """Carry a flow out."""
        answer: Answer | Lost | None = None
        try:
            while True:
                step = flow.send(answer)
                answer = None
                if isinstance(step, Send):
                    answer = await self._send(step)
                else:
                    await asyncio.sleep(step.seconds)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    async def _send(self, send: Send) -> Answer | Lost:
        arguments = self._arguments(send)
        if send.file is not None:
            arguments["content"] = _async_chunks(send)
        try:
            reply = await self._http[send.plane].request(send.method, send.path, **arguments)
        except httpx.TransportError as error:
            return self._lost(send, error)
        return Answer(reply.status_code, reply.headers, reply.content)

    async def aclose(self) -> None:
        """Close the connections."""
        for http in self._http.values():
            await http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _chunks(send: Send) -> Iterator[bytes]:
    """A file's bytes, or a span of them, and the sender told of them."""
    assert send.file is not None
    size = send.file.stat().st_size
    at, end = send.span or (0, size)
    with send.file.open("rb") as file:
        file.seek(at)
        while chunk := file.read(min(CHUNK_BYTES, end - at)):
            yield chunk
            at += len(chunk)
            if send.progress is not None:
                send.progress(at, size)


async def _async_chunks(send: Send) -> AsyncIterator[bytes]:
    for chunk in _chunks(send):
        yield chunk
