"""The methods of `inference.GRPCInferenceService` and `grpc.health.v1.Health`.

Messages are parsed and written here rather than by grpcio, so that a message which is none gets INVALID_ARGUMENT and
a fault of ours INTERNAL, and neither a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from headrace.core.errors import HeadraceError, InvalidInput, NotFound, PlatformFault, RetryLater, Unavailable
from headrace.core.report import Command
from headrace.router import oip
from headrace.router.core import Router
from headrace.router.grpc_api import health_pb2
from headrace.router.grpc_api import inference_pb2 as pb
from headrace.router.grpc_infer import Caller, Inference, failure

log = logging.getLogger("headrace.router.grpc")
INFERENCE: Final = "inference.GRPCInferenceService"
HEALTH: Final = "grpc.health.v1.Health"
STREAM_MAX = 256
"""Requests of one stream that may be on their way at once."""
WATCH_S = 0.2
"""How often a watched health is looked at."""
CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    # As grpcio itself says of a message over its own limit.
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""HTTP status -> gRPC's; INTERNAL for all others."""
Answer = Callable[[Any, Caller], Awaitable[Message]]


def parse(kind: type[Message], data: bytes) -> Any:
    """A message of the kind. Raises InvalidInput."""
    try:
        return kind.FromString(data)  # type: ignore[attr-defined,unused-ignore]
    except DecodeError:
        raise InvalidInput(f"the message is no {kind.DESCRIPTOR.full_name}") from None


def faultless(error: Exception) -> HeadraceError:
    """What a caller may know of an error."""
    if isinstance(error, HeadraceError):
        return error
    log.error("a call failed", exc_info=error)
    return PlatformFault("internal error")


async def abort(context: grpc.aio.ServicerContext, error: HeadraceError) -> None:
    """End the call with the error's status."""
    later = isinstance(error, RetryLater) and error.status in (429, 503)
    trailing = (("retry-after", "1"),) if later else ()
    await context.abort(CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message, trailing)


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """All methods, by path."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.stopping = asyncio.Event()
        self.inference = Inference(router)
        self._handlers = {
            f"/{INFERENCE}/ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer),
            f"/{INFERENCE}/ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream),
            f"/{HEALTH}/Watch": grpc.unary_stream_rpc_method_handler(self._watch),
            **{
                path: grpc.unary_unary_rpc_method_handler(self._unary(kind, answer))
                for path, kind, answer in self._methods()
            },
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The handler of a method."""
        found = self._handlers.get(details.method)
        return found or grpc.stream_stream_rpc_method_handler(not_offered(details.method))

    def _methods(self) -> list[tuple[str, type[Message], Answer]]:
        return [
            (f"/{INFERENCE}/ServerLive", pb.ServerLiveRequest, self.server_live),
            (f"/{INFERENCE}/ServerReady", pb.ServerReadyRequest, self.server_ready),
            (f"/{INFERENCE}/ServerMetadata", pb.ServerMetadataRequest, self.server_metadata),
            (f"/{INFERENCE}/ModelReady", pb.ModelReadyRequest, self.model_ready),
            (f"/{INFERENCE}/ModelMetadata", pb.ModelMetadataRequest, self.model_metadata),
            (f"/{INFERENCE}/ModelConfig", pb.ModelConfigRequest, self.model_config),
            (f"/{INFERENCE}/ModelStatistics", pb.ModelStatisticsRequest, self.model_statistics),
            (f"/{INFERENCE}/RepositoryIndex", pb.RepositoryIndexRequest, self.repository_index),
            (f"/{INFERENCE}/RepositoryModelLoad", pb.RepositoryModelLoadRequest, self.load),
            (f"/{INFERENCE}/RepositoryModelUnload", pb.RepositoryModelUnloadRequest, self.unload),
            (f"/{HEALTH}/Check", health_pb2.HealthCheckRequest, self.check),
        ]

    def _unary(self, kind: type[Message], answer: Answer) -> Callable[[bytes, grpc.aio.ServicerContext], Any]:
        """A method that answers one message with one."""

        async def handle(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            caller = self._caller(context)
            try:
                return (await answer(parse(kind, data), caller)).SerializeToString()
            except Exception as error:
                known = faultless(error)
                self.router.count(caller.tenant.index if caller.tenant is not None else -1, known.status)
                await abort(context, known)
                raise

        return handle

    def _caller(self, context: grpc.aio.ServicerContext) -> Caller:
        return Caller(self.router.table, dict(context.invocation_metadata()))

    # ------------------------------------------------------------------------------------------------ inference
    async def _infer(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            request = parse(pb.ModelInferRequest, data)
            reply = await self.inference.infer(request, self._caller(context), context.time_remaining())
            return reply.SerializeToString()
        except Exception as error:
            await abort(context, faultless(error))
            raise

    async def _stream(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """Requests in, and for each an answer or an error, in the order of the requests."""
        caller = self._caller(context)
        start = asyncio.get_running_loop().create_task
        stopping = start(self.stopping.wait())
        reading: asyncio.Task[bytes] | None = None
        answers: deque[asyncio.Task[bytes]] = deque()
        ended = False
        try:
            while answers or not ended:
                if reading is None and not ended and len(answers) < STREAM_MAX:
                    reading = start(context.read())
                waits = {task for task in (reading, answers[0] if answers else None) if task is not None}
                await asyncio.wait(waits if ended else {*waits, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if answers and answers[0].done():
                    await context.write(answers.popleft().result())
                if reading is not None and reading.done():
                    if (data := reading.result()) is grpc.aio.EOF:
                        ended = True
                    else:
                        answers.append(start(self._stream_one(data, caller, context.time_remaining())))
                    reading = None
                elif stopping.done() and reading is not None:
                    reading.cancel()
                    reading, ended = None, True
        finally:
            for task in (stopping, reading, *answers):
                if task is not None:
                    task.cancel()
        if self.stopping.is_set():
            await abort(context, Unavailable("the router is stopping: open another stream"))

    async def _stream_one(self, data: bytes, caller: Caller, left_s: float | None) -> bytes:
        id_, final = "", False
        try:
            request = parse(pb.ModelInferRequest, data)
            id_, final = request.id, request.parameters["triton_enable_empty_final_response"].bool_param
            reply = await self.inference.infer(request, caller, left_s)
            answer = pb.ModelStreamInferResponse(infer_response=reply)
        except Exception as error:
            answer = pb.ModelStreamInferResponse(error_message=faultless(error).message)
            answer.infer_response.id = id_
        if final:  # what clients of models with many answers wait for
            answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer.SerializeToString()

    # ------------------------------------------------------------------------------------------------ server, models
    @property
    def ready(self) -> bool:
        """Whether there is a routing table to serve by, and time to do it."""
        return self.router.table.snapshot.epoch > 0 and not self.router.draining

    async def server_live(self, request: pb.ServerLiveRequest, caller: Caller) -> Message:
        """It answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, caller: Caller) -> Message:
        """See `ready`."""
        return pb.ServerReadyResponse(ready=self.ready)

    async def server_metadata(self, request: pb.ServerMetadataRequest, caller: Caller) -> Message:
        """Name, version, extensions."""
        return ParseDict(oip.SERVER, pb.ServerMetadataResponse())

    async def model_ready(self, request: pb.ModelReadyRequest, caller: Caller) -> Message:
        """Whether a request would find a replica."""
        model, version = self._resolve(request.name, request.version, caller)
        return pb.ModelReadyResponse(ready=oip.is_ready(model, version))

    async def model_metadata(self, request: pb.ModelMetadataRequest, caller: Caller) -> Message:
        """Inputs, outputs, versions."""
        model, version = self._resolve(request.name, request.version, caller)
        return ParseDict(oip.metadata(model, request.name, version), pb.ModelMetadataResponse())

    async def model_config(self, request: pb.ModelConfigRequest, caller: Caller) -> Message:
        """Triton's configuration, as far as it says something here."""
        model, version = self._resolve(request.name, request.version, caller)
        return ParseDict({"config": oip.config(model, request.name, version)}, pb.ModelConfigResponse())

    async def model_statistics(self, request: pb.ModelStatisticsRequest, caller: Caller) -> Message:
        """Of one model, or of all that the caller may use."""
        table, version = self.router.table, None
        models = table.visible(caller.known().index)
        if request.name:
            model, version = self._resolve(request.name, request.version, caller)
            models = [model]
        rows = await oip.collect_statistics(table, models, version)
        return ParseDict({"model_stats": rows}, pb.ModelStatisticsResponse())

    def _resolve(self, name: str, version: str, caller: Caller) -> tuple[Any, int | None]:
        return oip.resolve(self.router.table, name, version or None, caller.known().index)

    # ------------------------------------------------------------------------------------------------ repository
    async def repository_index(self, request: pb.RepositoryIndexRequest, caller: Caller) -> Message:
        """Deployed versions."""
        rows = oip.index_of(self.router.table.visible(caller.known().index), request.ready)
        return ParseDict({"models": rows}, pb.RepositoryIndexResponse())

    async def load(self, request: pb.RepositoryModelLoadRequest, caller: Caller) -> Message:
        """Deploy the newest version."""
        for name in request.parameters:
            raise InvalidInput(f"parameters.{name}: a model is loaded as it was pushed", field=f"parameters.{name}")
        await self._command("load", request.model_name, caller)
        return pb.RepositoryModelLoadResponse()

    async def unload(self, request: pb.RepositoryModelUnloadRequest, caller: Caller) -> Message:
        """Undeploy all versions."""
        await self._command("unload", request.model_name, caller)
        return pb.RepositoryModelUnloadResponse()

    async def _command(self, verb: str, model: str, caller: Caller) -> None:
        tenant, found = caller.known(), self.router.table.key_of(caller.authorization)
        if self.router.peer is None:
            raise Unavailable("the control plane is not there")
        reply = await self.router.peer.command(Command(verb, model, tenant.index, found[1] if found else "viewer"))
        if reply.status != 200:
            raise failure(reply.status, reply.message)

    # ------------------------------------------------------------------------------------------------ health
    async def check(self, request: health_pb2.HealthCheckRequest, caller: Caller) -> Message:
        """The health of the server ("") or of the inference service."""
        status = self._health(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"service {request.service!r} is not offered", field="service")
        return health_pb2.HealthCheckResponse(status=status)

    def _health(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        kinds = health_pb2.HealthCheckResponse
        if service not in ("", INFERENCE):
            return kinds.SERVICE_UNKNOWN
        return kinds.SERVING if self.ready else kinds.NOT_SERVING

    async def _watch(self, data: bytes, context: grpc.aio.ServicerContext) -> None:
        """The health now, and whenever it is another."""
        try:
            service = parse(health_pb2.HealthCheckRequest, data).service
        except InvalidInput as error:
            await abort(context, error)
        told = None
        while True:
            status = self._health(service)
            if status != told:
                told = status
                await context.write(health_pb2.HealthCheckResponse(status=status).SerializeToString())
            if self.stopping.is_set():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), WATCH_S)


def not_offered(method: str) -> Callable[[object, grpc.aio.ServicerContext], Awaitable[None]]:
    """The handler of every method that is not here."""

    async def handle(_: object, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not offered")

    return handle
