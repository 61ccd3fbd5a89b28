"""Our own connections over TCP: who holds no key gets nowhere, and costs little."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
import uvloop

from headrace.controlplane.link import Hub
from headrace.core import addresses, frames
from headrace.core.addresses import Listener
from headrace.core.handshake import replica_key
from headrace.core.peer import ControlPeer
from headrace.core.report import Command, CommandReply, Hello, ReplicaReport

SECRET = b"s" * 32


def key_of(name: str) -> bytes:
    return replica_key(SECRET, name)


class Echo(frames.FrameProtocol):
    """Sends back what it gets, and a word at once where it is told to."""

    def __init__(self, greets: bytes = b"") -> None:
        super().__init__()
        self.greets = greets
        self.got = bytearray()
        self.heard = asyncio.Event()
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.greets:
            self.transport.write(self.greets)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def on_data(self, data: bytes) -> int:
        self.got += data
        self.heard.set()
        return len(data)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    uvloop.run(bounded())


def test_frames_pass_between_two_that_hold_the_key_at_once_and_large() -> None:
    async def test() -> None:
        hello, large = frames.frame(frames.PING, 7), frames.frame(frames.REPLY, 8, body=bytes(3 << 20))
        accepted: list[Echo] = []

        def make(name: str) -> Echo:
            assert name == "a"
            accepted.append(Echo(hello + large))  # behind the proof, in the same segment
            return accepted[-1]

        listener = Listener(make, "requests", key_of)
        await listener.open("tcp:127.0.0.1:0")
        mine = Echo()
        await addresses.connect(listener.address, mine, "requests", key_of("a"), "a")
        while len(mine.got) < len(hello + large):
            mine.heard.clear()
            await mine.heard.wait()
        assert mine.got == hello + large
        mine.transport.write(large)
        await accepted[0].heard.wait()
        for transport in (mine.transport, accepted[0].transport):
            connection = transport.get_extra_info("socket")
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == addresses.SILENT_S * 1000
        assert listener.strangers == 0
        mine.transport.close()
        await accepted[0].lost.wait()
        listener.close()

    run(test)


def test_a_wrong_secret_gets_nowhere_on_either_side() -> None:
    async def test() -> None:
        listener = Listener(lambda _: pytest.fail("nobody is let in"), "requests", key_of)
        await listener.open("tcp:127.0.0.1:0")
        with pytest.raises(ConnectionError):
            await addresses.connect(listener.address, Echo(), "requests", replica_key(b"other", "a"), "a")
        with pytest.raises(ConnectionError):
            await addresses.connect(listener.address, Echo(), "reports", key_of("a"), "a")
        listener.close()

        async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HRC1" + bytes(32))
            await reader.read(1000)
            writer.write(bytes(32) + frames.frame(frames.GOAWAY))
            await reader.read()
            writer.close()

        server = await asyncio.start_server(impostor, "127.0.0.1", 0)
        address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        protocol = Echo()
        with pytest.raises(ConnectionError, match="secret"):
            await addresses.connect(address, protocol, "requests", key_of("a"), "a")
        assert not protocol.got
        server.close()

    run(test)


def test_strangers_are_bounded_in_number_time_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "HANDSHAKE_S", 0.3)
    monkeypatch.setattr(addresses, "STRANGERS_MAX", 3)

    async def test() -> None:
        listener = Listener(lambda _: Echo(), "requests", key_of)
        await listener.open("tcp:127.0.0.1:0")
        host, port = addresses.parse_tcp(listener.address)
        silent = [await asyncio.open_connection(host, port) for _ in range(3)]
        for reader, _ in silent:
            assert len(await reader.readexactly(36)) == 36
        reader, writer = await asyncio.open_connection(host, port)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)  # one too many
        writer.close()
        for reader, writer in silent:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(1)  # they said nothing in time
            writer.close()
        while listener.strangers:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.1\r\n" + bytes(100_000))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1000)
        writer.close()
        mine = Echo()
        await addresses.connect(listener.address, mine, "requests", key_of("a"), "a")
        mine.transport.close()
        listener.close()

    run(test)


def test_a_replica_reports_over_tcp_under_its_own_name_alone() -> None:
    async def test() -> None:
        reports: list[Any] = []
        news: asyncio.Queue[str] = asyncio.Queue()

        async def nothing(_: Command) -> CommandReply:
            raise AssertionError("a replica commands nothing")

        hub = Hub(reports.append, nothing, lambda: None, news.put_nowait)
        with socket.socket() as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(("127.0.0.1", 0))
            address = f"tcp:127.0.0.1:{held.getsockname()[1]}"
            await hub.listen(address, SECRET)
            told = asyncio.Event()
            peer = ControlPeer(
                address,
                Hello("replica", "a", 1),
                lambda: msgspec.msgpack.encode(ReplicaReport("a", (), 5)),
                on_stop=told.set,
                key=key_of("a"),
            )
            peer.start()
            assert await news.get() == "a" and set(hub.replicas) == {"a"}
            while not reports:
                await asyncio.sleep(0.01)
            hub.stop_replica("nobody")
            hub.stop_replica("a")
            await told.wait()
            await peer.stop()
            assert await news.get() == "a" and not hub.replicas
            # One that says it is another, or a router, or commands.
            for said in (
                frames.frame(frames.HELLO, body=msgspec.msgpack.encode(Hello("replica", "b", 1))),
                frames.frame(frames.HELLO, body=msgspec.msgpack.encode(Hello("router", "a", 1))),
            ):
                protocol = Echo()
                await addresses.connect(address, protocol, "reports", key_of("a"), "a")
                protocol.transport.write(said)
                await protocol.lost.wait()
            assert not hub.replicas and not hub.routers
        hub.close()

    run(test)
