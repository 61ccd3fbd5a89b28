"""Artifacts are examined apart: a model that takes its process down gives an error, and the next one is examined."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from headrace.core.errors import Unprocessable
from headrace.core.specs import Examination, ExaminationRequest
from headrace.registry.examiner import FRESH_MAX, Examiner
from tests import models
from tests.models import Artifact

T = TypeVar("T")
BY_PATH = """
import os, sys, time
for line in sys.stdin:
    if "segfault" in line:
        os.kill(os.getpid(), 11)
    elif "exits" in line:
        os._exit(3)
    elif "hangs" in line:
        time.sleep(60)
    elif "forks" in line:
        child = os.fork() or time.sleep(120) or os._exit(0)
        if "dies" in line:
            os._exit(child & 127)
        print('{"error": {"message": "%d"}}' % child, flush=True)
    elif "garbage" in line:
        print("garbage", flush=True)
    else:
        print('{"error": {"message": "pid %d"}}' % os.getpid(), flush=True)
"""
"""Speaks like the real one, and does what the artifact's path says."""


def request_of(artifact: Artifact, folder: Path) -> ExaminationRequest:
    return ExaminationRequest(artifact.engine, str(artifact.save(folder)), artifact.options, artifact.signature)


def asked(examiner: Examiner, engine: str, path: str) -> Awaitable[Examination]:
    return examiner.examine(ExaminationRequest(engine, path))


def test_a_real_model_is_read_by_the_warm_process_and_by_a_fresh_one(tmp_path: Path) -> None:
    async def go() -> list[Examination]:
        examiner = Examiner()
        try:
            artifacts = (models.echo_onnx(), models.python_echo(), models.exits_at_warm_up())
            found = []
            for artifact in artifacts[:2]:
                found.append(await examiner.examine(request_of(artifact, tmp_path)))
            with pytest.raises(Unprocessable, match="crashed while loading"):
                await examiner.examine(request_of(artifacts[2], tmp_path))
            return found
        finally:
            await examiner.close()

    for one in asyncio.run(go()):
        assert one.fault is None and one.signature is not None and one.options is not None


def test_a_process_that_dies_is_told_of_and_replaced() -> None:
    async def go() -> None:
        examiner = Examiner((sys.executable, "-c", BY_PATH), timeout_s=5)
        try:
            first, second = await asked(examiner, "onnx", "a"), await asked(examiner, "onnx", "b")
            assert first == second
            with pytest.raises(Unprocessable, match="signal 11, SIGSEGV"):
                await asked(examiner, "onnx", "segfault")
            with pytest.raises(Unprocessable, match="exit code 3"):
                await asked(examiner, "python", "exits")
            third = await asked(examiner, "onnx", "a")
            assert third.fault is not None and third != first
            garbled = await asked(examiner, "python", "garbage")
            assert garbled.fault is not None and "wrote over" in garbled.fault.message
            assert await asked(examiner, "onnx", "a") == third
        finally:
            await examiner.close()

    asyncio.run(go())


def test_what_a_model_forked_goes_with_it_and_holds_nobody_up() -> None:
    async def go() -> int:
        examiner = Examiner((sys.executable, "-c", BY_PATH), timeout_s=20)
        try:
            found = await asyncio.wait_for(asked(examiner, "python", "forks"), 10)
            with pytest.raises(Unprocessable, match="crashed while loading"):  # though its output is held open
                await asyncio.wait_for(asked(examiner, "onnx", "forks and dies"), 10)
            assert found.fault is not None
            return int(found.fault.message)
        finally:
            await asyncio.wait_for(examiner.close(), 10)

    left = asyncio.run(go())
    deadline = time.monotonic() + 5
    while runs(left):
        assert time.monotonic() < deadline, f"process {left} is still there"


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which nobody may have reaped yet."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_only_so_many_fresh_processes_run_at_once(tmp_path) -> None:
    """Each says how many, itself included, have begun and not ended."""
    counting = f"""
import os, sys, time
sys.stdin.readline()
here = {str(tmp_path)!r}
mine = os.path.join(here, str(os.getpid()))
open(mine, "w").close()
end = time.monotonic() + 2
while len(os.listdir(here)) < {FRESH_MAX} and time.monotonic() < end:
    time.sleep(.01)
time.sleep(.05)
count = len(os.listdir(here))
os.unlink(mine)
print('{{"error": {{"message": "%d"}}}}' % count, flush=True)
sys.stdin.read()
"""

    async def go() -> list[int]:
        examiner = Examiner((sys.executable, "-c", counting), timeout_s=20)
        found = await asyncio.gather(*(asked(examiner, "python", f"{n}") for n in range(3 * FRESH_MAX)))
        return [int(one.fault.message) for one in found if one.fault is not None]

    assert max(asyncio.run(go())) == FRESH_MAX


def test_a_model_that_hangs_is_ended() -> None:
    async def go() -> None:
        examiner = Examiner((sys.executable, "-c", BY_PATH), timeout_s=0.3)
        try:
            with pytest.raises(Unprocessable, match=r"within 0\.3 s"):
                await asked(examiner, "python", "hangs")
        finally:
            await examiner.close()

    asyncio.run(go())


def test_the_warm_process_leaves_when_nobody_asks_and_another_comes_when_somebody_does() -> None:
    async def go() -> None:
        examiner = Examiner((sys.executable, "-c", BY_PATH), idle_s=0.2)
        try:
            first = await asked(examiner, "onnx", "fine")
            second = await asked(examiner, "onnx", "fine")  # before it leaves: the same one
            assert first.fault is not None and first.fault == second.fault
            pid = int(first.fault.message.removeprefix("pid "))
            end = time.monotonic() + 20
            while Path(f"/proc/{pid}").exists():
                assert time.monotonic() < end, "it stays"
                await asyncio.sleep(0.02)
            third = await asked(examiner, "onnx", "fine")
            assert third.fault is not None and third.fault != first.fault
        finally:
            await examiner.close()

    asyncio.run(go())
