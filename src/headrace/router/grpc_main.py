"""The gRPC router process: ``python -m headrace.router.grpc_main``, its RouterSpec as the first line of standard input.

Beside the HTTP routers and like them: the same snapshots, quotas, links to replicas, reports, and way to stop.
"""

from __future__ import annotations

import asyncio
import sys

import grpc

from headrace.router.core import Router
from headrace.router.grpc_service import Service
from headrace.router.main import run

LIMIT_S = 1.0
"""How often it is looked whether a model may be sent more than the server takes."""
HEAD_MAX = 1 << 20
"""Bytes of a message beside its tensors."""


class GrpcListener:
    """Serves gRPC on the router's port."""

    _server: grpc.aio.Server
    _following: asyncio.Task[None]

    def __init__(self, router: Router) -> None:
        self.port = router.spec.port
        self._router = router
        self._service = Service(router)
        self._limit = 0
        self._stops: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, router: Router) -> GrpcListener:
        """Start to listen. Raises OSError when the port cannot be had."""
        listener = cls(router)
        await listener._start()
        listener._following = asyncio.get_running_loop().create_task(listener._follow_limit())
        return listener

    async def _start(self) -> None:
        spec = self._router.spec
        self._limit = self._router.table.body_max
        options = [
            ("grpc.max_receive_message_length", self._limit + HEAD_MAX),  # also of what a compressed one grows to
            ("grpc.max_send_message_length", -1),
            ("grpc.max_connection_idle_ms", int(spec.idle_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ("grpc.so_reuseport", 1),
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=spec.max_connections)
        server.add_generic_rpc_handlers((self._service,))
        host = f"[{spec.host}]" if ":" in spec.host else spec.host
        try:
            self.port = server.add_insecure_port(f"{host}:{self.port}")
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await server.start()
        self._server = server

    async def _follow_limit(self) -> None:
        """A server's limit is fixed: when a model is given a higher one, another server takes over the port."""
        while True:
            await asyncio.sleep(LIMIT_S)
            if self._router.table.body_max > self._limit:
                old = self._server
                await self._start()
                self._stop(old, self._router.spec.drain_s)

    async def drain(self, drain_s: float) -> None:
        """Accept nothing more; finish what is in flight, bounded."""
        self._following.cancel()
        self._router.draining = True
        self._service.stopping.set()
        self._stop(self._server, drain_s)
        await asyncio.gather(*self._stops)

    def _stop(self, server: grpc.aio.Server, drain_s: float) -> None:
        stop = asyncio.get_running_loop().create_task(server.stop(drain_s))
        self._stops.add(stop)
        stop.add_done_callback(self._stops.discard)


if __name__ == "__main__":
    sys.exit(run(GrpcListener.open))
