"""Artifacts are examined apart: a model that takes its process down gives an error, and the next one is examined."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from headrace.core.errors import Unprocessable
from headrace.core.specs import Examination, ExaminationRequest
from headrace.registry.examiner import Examiner
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


def test_a_model_that_hangs_is_ended() -> None:
    async def go() -> None:
        examiner = Examiner((sys.executable, "-c", BY_PATH), timeout_s=0.3)
        try:
            with pytest.raises(Unprocessable, match=r"within 0\.3 s"):
                await asked(examiner, "python", "hangs")
        finally:
            await examiner.close()

    asyncio.run(go())
