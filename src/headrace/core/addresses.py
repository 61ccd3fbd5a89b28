"""Addresses of our own processes, ``unix:/path`` and ``tcp:host:port``: connecting to them and listening on them.

A Unix socket is guarded by its folder's mode. On TCP either side first makes sure of the other (`handshake`), bounded
in time and memory; only then does the connection belong to the protocol that carries frames, which knows nothing of
it: on the way of a request there is no difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable
from typing import cast

from headrace.core.frames import FrameProtocol
from headrace.core.handshake import NONCE, Acceptor, Initiator, Purpose, Refused

log = logging.getLogger("headrace.addresses")
HANDSHAKE_S = 5.0
"""Longest that connecting, or the handshake of somebody who has connected, may take."""
STRANGERS_MAX = 256
"""Connections of a listener that are in their handshake; more are closed at once."""
SILENT_S = 8
"""After so long without a sign of the other machine (data that it does not acknowledge, or probes), it is lost."""
BACKLOG = 128


def tune(transport: asyncio.BaseTransport) -> None:
    """Small frames leave at once, and a machine that has vanished is noticed."""
    connection = cast(socket.socket, transport.get_extra_info("socket"))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 2),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", SILENT_S // 2 - 1),
        ("TCP_USER_TIMEOUT", SILENT_S * 1000),
    ):
        if hasattr(socket, option):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def hand_over(transport: asyncio.Transport, protocol: FrameProtocol, rest: bytes) -> None:
    """The connection is the protocol's from here on, and so is what has come already."""
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    while rest and not transport.is_closing():
        buffer = protocol.get_buffer(len(rest))
        taken = min(len(buffer), len(rest))
        buffer[:taken] = rest[:taken]
        protocol.buffer_updated(taken)
        rest = rest[taken:]


# ------------------------------------------------------------------------------------------------ connecting
class _Knock(asyncio.Protocol):
    """The initiator's handshake on a connection."""

    def __init__(self, initiator: Initiator, protocol: FrameProtocol) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._initiator = initiator
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tune(transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._transport.write(self._initiator.receive(data))
        except Refused as error:
            self._fail(error)
            self._transport.abort()
            return
        if self._initiator.done and not self.over.done():
            self.over.set_result(None)
            hand_over(self._transport, self._protocol, self._initiator.rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(Refused("the other side ended the connection in the handshake: another secret?"))

    def _fail(self, error: Exception) -> None:
        if not self.over.done():
            self.over.set_exception(error)


async def connect(address: str, protocol: FrameProtocol, purpose: Purpose, key: bytes = b"", name: str = "") -> None:
    """Connect a protocol.

    Args:
        address: ``unix:/path`` or ``tcp:host:port``.
        purpose: of the connection.
        key: on TCP, of the replica that is one of the two.
        name: that replica's.

    Raises:
        OSError: it does not work; ConnectionError where the other side does not know us, or we not it.
    """
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        await loop.create_unix_connection(lambda: protocol, address.removeprefix("unix:"))
        return
    host, port = parse_tcp(address)
    knock = _Knock(Initiator(key, purpose, name, secrets.token_bytes(NONCE)), protocol)
    transport: asyncio.BaseTransport | None = None
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            transport, _ = await loop.create_connection(lambda: knock, host, port)
            await knock.over
    except BaseException:
        if transport is not None:
            cast(asyncio.Transport, transport).abort()
        raise
    finally:
        if knock.over.done() and not knock.over.cancelled():
            knock.over.exception()  # seen, also where the time was over first


def parse_tcp(address: str) -> tuple[str, int]:
    """Host and port of ``tcp:host:port``; the host of an IPv6 address is in brackets or not."""
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    return host.strip("[]"), int(port)


# ------------------------------------------------------------------------------------------------ listening
class Listener:
    """Accepts connections for protocols.

    Args:
        make: makes the protocol of a connection, given the name that was proved (empty on a Unix socket).
        purpose: of the connections.
        key_of: see `handshake.Acceptor`.
    """

    def __init__(
        self,
        make: Callable[[str], FrameProtocol],
        purpose: Purpose,
        key_of: Callable[[str], bytes | None] = lambda _: None,
    ) -> None:
        self.address = ""
        """Where it listens, with the port that the system chose."""
        self.strangers = 0
        self.make = make
        self.purpose = purpose
        self.key_of = key_of
        self._server: asyncio.Server | None = None

    async def open(self, address: str, *, shared: bool = False) -> None:
        """Listen; a Unix socket that a dead process left is replaced. Raises OSError.

        Args:
            address: ``unix:/path``, or ``tcp:host:port`` with port 0 for one that the system chooses.
            shared: another socket holds the port for us.
        """
        loop = asyncio.get_running_loop()
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._server = await loop.create_unix_server(lambda: self.make(""), path, backlog=BACKLOG)
            os.chmod(path, 0o600)
            self.address = address
            return
        host, port = parse_tcp(address)
        self._server = await loop.create_server(
            lambda: _Door(self), host, port, backlog=BACKLOG, reuse_port=shared or None
        )
        self.address = f"tcp:{host}:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Accept nothing more."""
        if self._server is not None:
            self._server.close()
        if self.address.startswith("unix:"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address.removeprefix("unix:"))


class _Door(asyncio.Protocol):
    """The acceptor's handshake on a connection."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._acceptor = Acceptor(listener.purpose, listener.key_of, secrets.token_bytes(NONCE))
        self._outside = False  # counted among the strangers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._listener.strangers >= STRANGERS_MAX:
            self._transport.abort()
            return
        self._outside = True
        self._listener.strangers += 1
        tune(transport)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._transport.abort)
        self._transport.write(self._acceptor.greeting)

    def data_received(self, data: bytes) -> None:
        try:
            answer = self._acceptor.receive(data)
        except Refused as error:
            log.warning("a connection from %s was refused: %s", self._transport.get_extra_info("peername"), error)
            self._transport.abort()
            return
        if self._acceptor.done:
            self._inside()
            self._transport.write(answer)
            hand_over(self._transport, self._listener.make(self._acceptor.name), b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self._inside()

    def _inside(self) -> None:
        if self._outside:
            self._outside = False
            self._listener.strangers -= 1
            self._timer.cancel()
