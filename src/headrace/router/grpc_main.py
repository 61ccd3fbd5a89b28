"""The gRPC router process: ``python -m headrace.router.grpc_main``, its RouterSpec as the first line of standard input.

Beside the HTTP routers and like them: the same snapshots, quotas, links to replicas, reports, and way to stop.
"""

from __future__ import annotations

import sys

import grpc

from headrace.core import frames
from headrace.router.core import Router
from headrace.router.grpc_service import Service
from headrace.router.main import run


class GrpcListener:
    """Serves gRPC on the router's port."""

    def __init__(self, router: Router, server: grpc.aio.Server, service: Service, port: int) -> None:
        self.port = port
        self._router = router
        self._server = server
        self._service = service

    @classmethod
    async def open(cls, router: Router) -> GrpcListener:
        """Start to listen. Raises OSError when the port cannot be had."""
        spec = router.spec
        options = [
            # A body's own limit is the model's; this is the most that a model may be given.
            ("grpc.max_receive_message_length", frames.FRAME_MAX),
            ("grpc.max_send_message_length", frames.FRAME_MAX),
            ("grpc.max_connection_idle_ms", int(spec.idle_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ("grpc.so_reuseport", 1),
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=spec.max_connections)
        service = Service(router)
        server.add_generic_rpc_handlers((service,))
        host = f"[{spec.host}]" if ":" in spec.host else spec.host
        try:
            port = server.add_insecure_port(f"{host}:{spec.port}")
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await server.start()
        return cls(router, server, service, port)

    async def drain(self, drain_s: float) -> None:
        """Accept nothing more; finish what is in flight, bounded."""
        self._router.draining = True
        self._service.stopping.set()
        await self._server.stop(drain_s)


if __name__ == "__main__":
    sys.exit(run(GrpcListener.open))
