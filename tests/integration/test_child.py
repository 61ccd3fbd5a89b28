"""A child process of the node, with a small program that obeys the protocol - or does not."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from headrace.core.specs import ReplicaEvent
from headrace.deploy.child import NOT_STARTED, Child

PROGRAM = {
    "obeys": """
        import signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        spec = sys.stdin.readline()
        print('{"state":"ready","detail":"' + spec.count("hello") * "x" + '"}', flush=True)
        sys.stdin.read()
    """,
    "babbles": """
        import sys
        print("no JSON", flush=True)
        print("x" * 3_000_000, flush=True)
        print('{"state":"ready"}', flush=True)
        sys.stdin.read()
    """,
    "is_deaf": """
        import signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print('{"state":"ready"}', flush=True)
        time.sleep(60)
    """,
    "leaves_a_child": """
        import subprocess, sys
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print('{"state":"ready","detail":"%d"}' % left.pid, flush=True)
        sys.stdin.read()
    """,
    "breaks": """
        raise SystemExit("the disk is full")
    """,
}


class Spec(msgspec.Struct):
    text: str = "hello"


class Run:
    """A child, what it said and how it ended."""

    def __init__(self, program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, cut: bool = False) -> None:
        self.said: asyncio.Queue[ReplicaEvent] = asyncio.Queue()
        self.codes: list[int] = []
        name = f"stand_in_{program}"
        (folder / f"{name}.py").write_text(textwrap.dedent(PROGRAM[program]))
        monkeypatch.setenv("PYTHONPATH", str(folder))
        logs = folder / ("no" if cut else "")
        self.child = Child(name, name, Spec(), logs, self.hear, self.codes.append)

    def hear(self, line: bytes) -> None:
        self.said.put_nowait(msgspec.json.decode(line, type=ReplicaEvent))

    async def ready(self) -> ReplicaEvent:
        return await asyncio.wait_for(self.said.get(), 20)

    async def ended(self) -> list[int]:
        await asyncio.wait_for(self.child.exited.wait(), 20)
        return self.codes


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    return lambda program, **options: Run(program, tmp_path, monkeypatch, **options)


def test_it_gets_its_spec_and_is_heard_and_drained(run: Callable[..., Run]) -> None:
    async def main() -> None:
        it = run("obeys")
        assert (await it.ready()).detail == "x"
        await it.child.stop(20)
        assert await it.ended() == [0]

    asyncio.run(main())


def test_told_to_stop_before_it_is_there_it_stops(run: Callable[..., Run]) -> None:
    async def main() -> None:
        it = run("obeys")
        await it.child.stop(20)
        assert await it.ended() in ([0], [-signal.SIGTERM])

    asyncio.run(main())


def test_nonsense_is_skipped(run: Callable[..., Run]) -> None:
    async def main() -> None:
        it = run("babbles")
        assert (await it.ready()).state == "ready"
        it.child.kill()
        assert await it.ended() == [-signal.SIGKILL]

    asyncio.run(main())


def test_who_does_not_stop_is_killed(run: Callable[..., Run]) -> None:
    async def main() -> None:
        it = run("is_deaf")
        await it.ready()
        await it.child.stop(0.1)
        assert await it.ended() == [-signal.SIGKILL]

    asyncio.run(main())


def test_what_a_killed_process_leaves_goes_with_it(run: Callable[..., Run]) -> None:
    async def main() -> None:
        it = run("leaves_a_child")
        left = int((await it.ready()).detail)
        os.kill(it.child.pid, signal.SIGKILL)
        assert await it.ended() == [-signal.SIGKILL]
        end = asyncio.get_running_loop().time() + 10
        while _runs(left):
            assert asyncio.get_running_loop().time() < end, "what it left still runs"
            await asyncio.sleep(0.01)

    asyncio.run(main())


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_why_it_ended_is_the_last_line_of_its_log(run: Callable[..., Run]) -> None:
    async def main() -> None:
        it = run("breaks")
        assert await it.ended() == [1]
        assert it.child.log_tail() == "the disk is full"

    asyncio.run(main())


def test_one_that_cannot_be_started_has_ended(run: Callable[..., Run]) -> None:
    async def main() -> None:
        assert await run("obeys", cut=True).ended() == [NOT_STARTED]

    asyncio.run(main())
