"""The control plane's socket and publications, with real routers' links at its other end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection

from headrace.controlplane import accounts, publisher
from headrace.controlplane.link import Hub
from headrace.controlplane.publisher import Publisher
from headrace.controlplane.store import Store, open_store
from headrace.core import snapshot
from headrace.core.peer import ControlPeer
from headrace.core.report import Command, CommandReply, Hello, ReplicaReport, RouterReport
from headrace.core.resources import Quota
from headrace.core.snapshot import Snapshot, State
from headrace.core.specs import ReplicaStatus
from headrace.registry import store as registry
from tests.unit.test_reconcile import status


class Replicas:
    """A fleet of which only the list is asked."""

    def __init__(self) -> None:
        self.list: list[ReplicaStatus] = []

    def statuses(self) -> tuple[ReplicaStatus, ...]:
        return tuple(self.list)


class Router:
    """A router's link that applies what comes, and acknowledges it when it is in the mood."""

    def __init__(self, address: str, name: str = "router-0", answers: bool = True) -> None:
        self.got: list[Snapshot] = []
        self.state = State()
        self.answers = answers
        self.changed = asyncio.Event()
        self.peer = ControlPeer(address, Hello("router", name, 1), self.report, self.take)
        self.name = name
        self.peer.start()

    def report(self) -> bytes:
        return msgspec.msgpack.encode(RouterReport(self.name, self.state.epoch, (), 0, 0, 0, 0, 0))

    def take(self, body: bytes) -> None:
        change = snapshot.decode(body)
        self.got.append(change)
        self.state.apply(change)
        if self.answers:
            self.peer.acknowledge(change.epoch)
        self.changed.set()

    async def serves(self, epoch: int) -> None:
        async with asyncio.timeout(10):
            while self.state.epoch < epoch:
                self.changed.clear()
                await self.changed.wait()


class Control:
    """A control plane's store, hub and publisher."""

    def __init__(self, folder: Path, url: str) -> None:
        self.store = Store(open_store(url))
        self.address = f"unix:{folder / 'control.sock'}"
        self.replicas = Replicas()
        self.reports: list[RouterReport | ReplicaReport] = []
        self.hub = Hub(self.reports.append, self.command, self.router_changed)
        self.publisher = Publisher(self.store, self.hub, self.replicas, "")  # type: ignore[arg-type]
        self.tasks: set[asyncio.Task[Any]] = set()

    async def command(self, command: Command) -> CommandReply:
        if command.model == "bug":
            raise RuntimeError("a bug")
        return CommandReply(200, f"{command.verb} {command.model}")

    def router_changed(self) -> None:
        task = asyncio.get_running_loop().create_task(self.publisher.publish())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def open(self) -> None:
        await self.hub.listen(self.address)

    async def add(self, *names: str) -> None:
        def work(c: Connection) -> None:
            tenant = accounts.find_tenant(c, "default") or accounts.create_tenant(c, "default", Quota())
            for name in names:
                registry.ensure_model(c, tenant.index, name)

        await self.store.run(work)

    async def close(self) -> None:
        self.hub.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.store.close()


Test = Callable[[Control], Coroutine[Any, Any, None]]


@pytest.fixture
def with_control(tmp_path: Path, url: str) -> Callable[[Test], None]:
    """Run a test within a control plane; again on the same folder is one that has started again."""

    async def main(test: Test) -> None:
        control = Control(tmp_path, url)
        await control.open()
        try:
            await test(control)
        finally:
            await control.close()

    return lambda test: asyncio.run(main(test))


def names(found: Snapshot | State) -> list[str]:
    return sorted(found.models if isinstance(found, State) else [model.id for model in found.models])


def test_the_first_snapshot_is_whole_and_the_next_says_what_changed(with_control: Callable[[Test], None]) -> None:
    async def test(control: Control) -> None:
        await control.add("a", "b")
        router = Router(control.address)
        await router.serves(1)
        await control.add("c")
        effect = await control.publisher.publish()
        assert effect.effective and effect.epoch == router.state.epoch
        assert [change.base for change in router.got] == [0, router.got[0].epoch]
        assert names(router.got[1]) == ["default/c"]
        assert names(router.state) == ["default/a", "default/b", "default/c"]
        again = await control.publisher.publish()
        assert (again.epoch, len(router.got)) == (effect.epoch, 2), "nothing new is nothing sent"
        await router.peer.stop()

    with_control(test)


def test_only_ready_replicas_that_shall_go_on_are_routed_to(with_control: Callable[[Test], None]) -> None:
    async def test(control: Control) -> None:
        await control.add("m")
        router = Router(control.address)
        await router.serves(1)
        control.replicas.list = [status("a", "ready"), status("b", "ready"), status("c", "warming")]
        await control.publisher.publish()
        assert sorted(router.state.replicas) == ["a", "b"]
        control.publisher.draining.add("a")
        await control.publisher.publish()
        assert sorted(router.state.replicas) == ["b"]
        await router.peer.stop()

    with_control(test)


def test_epochs_grow_over_restarts_and_the_first_snapshot_is_whole_again(
    with_control: Callable[[Test], None],
) -> None:
    epochs: list[int] = []

    async def test(control: Control) -> None:
        await control.add(f"m{len(epochs)}")
        router = Router(control.address)
        await router.serves(1)
        assert router.got[0].base == 0
        epochs.append((await control.publisher.publish()).epoch)
        await router.peer.stop()

    for _ in range(3):
        with_control(test)
    assert epochs == sorted(set(epochs))


def test_a_router_that_does_not_follow_is_waited_for_and_told_of(
    with_control: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "ACK_TIMEOUT_S", 0.2)

    async def test(control: Control) -> None:
        good, deaf = Router(control.address), Router(control.address, "router-1", answers=False)
        await good.serves(1)
        await deaf.serves(1)
        await control.add("a")
        late = await control.publisher.publish()
        assert not late.effective and 200 <= late.milliseconds < 2000
        deaf.answers = True
        deaf.peer.acknowledge(deaf.state.epoch)
        assert (await control.publisher.publish()).effective
        control.publisher.expected = {"router-0", "router-1", "router-2"}
        assert not (await control.publisher.publish()).effective, "one that lives and is not connected"
        for router in (good, deaf):
            await router.peer.stop()

    with_control(test)


def test_a_router_that_lost_its_step_gets_everything(with_control: Callable[[Test], None]) -> None:
    async def test(control: Control) -> None:
        await control.add("a", "b")
        router = Router(control.address)
        await router.serves(1)
        router.peer.acknowledge(0)
        router.state = State()
        await router.serves(1)
        assert router.got[-1].base == 0 and names(router.state) == ["default/a", "default/b"]
        await router.peer.stop()

    with_control(test)


def test_publications_at_once_join(with_control: Callable[[Test], None]) -> None:
    async def test(control: Control) -> None:
        router = Router(control.address)
        await router.serves(1)

        async def change(number: int) -> None:
            await control.add(f"m{number}")
            effect = await control.publisher.publish()
            assert effect.effective
            assert f"default/m{number}" in names(router.state), "effective means that it is there"

        await asyncio.gather(*(change(number) for number in range(50)))
        assert len(router.got) < 50
        await router.peer.stop()

    with_control(test)


def test_commands_are_answered_even_where_we_fail(with_control: Callable[[Test], None]) -> None:
    async def test(control: Control) -> None:
        router = Router(control.address)
        await router.serves(1)
        good, bad = await asyncio.gather(
            router.peer.command(Command("load", "m", 0, "operator")),
            router.peer.command(Command("load", "bug", 0, "operator")),
        )
        assert (good.status, good.message) == (200, "load m")
        assert bad.status == 500 and "a bug" not in bad.message
        await router.peer.stop()

    with_control(test)


def test_a_stranger_on_the_socket_is_thrown_out(with_control: Callable[[Test], None]) -> None:
    async def test(control: Control) -> None:
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n" + b"\xff" * 100, b"\x04\0\0\0" + b"\0" * 4 + b"\x10" + b"\xff" * 30):
            reader, writer = await asyncio.open_unix_connection(control.address.removeprefix("unix:"))
            writer.write(nonsense)
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
        router = Router(control.address)
        await router.serves(1)
        await router.peer.stop()

    with_control(test)
