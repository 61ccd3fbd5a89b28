"""A push that is cut off, wherever, goes on where it stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from headrace.client.client import AsyncClient, Client
from headrace.client.serve import Platform
from headrace.client.uploads import PART_BYTES
from headrace.deploy.node import NodeInfo
from tests import models

SIZE = 3 * PART_BYTES + 12_345


class Stop(Exception):
    """Raised by a person's Ctrl-C, so to speak."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    started = Platform(str(tmp_path_factory.mktemp("own")))
    yield started
    started.stop()


def large(folder: Path, name: str) -> Path:
    """A model file of four parts, which is Python with a long string."""
    source = models.python_echo().content
    path = folder / f"{name}.py"
    path.write_bytes(source + f"NAME = '{name}'\nWEIGHTS = '".encode() + b"w" * (SIZE - len(source) - 40) + b"'\n")
    return path


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def offsets(client: Client) -> list[int]:
    return [upload.offset for upload in client.artifacts.uploads().items]


def test_one_that_was_interrupted(own: Platform, tmp_path: Path) -> None:
    path, told = large(tmp_path, "interrupted"), []

    def interrupt(done: int, size: int) -> None:
        if done > 2.5 * PART_BYTES:
            raise Stop

    with pytest.raises(Stop):
        own.client.models.push("interrupted", path, progress=interrupt)
    assert offsets(own.client) == [2 * PART_BYTES]
    with Client(own.client.access.url, own.client.access.api_key, own.client.access.control_url) as another:
        version = another.models.push("interrupted", path, progress=lambda done, size: told.append((done, size)))
    assert version.result.size_bytes == path.stat().st_size
    assert told[0] == (2 * PART_BYTES, path.stat().st_size)
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert told == sorted(told)
    assert offsets(own.client) == []


def test_one_whose_control_plane_is_killed(own: Platform, tmp_path: Path) -> None:
    path, killed, told = large(tmp_path, "killed"), [], []

    def kill(done: int, size: int) -> None:
        told.append(done)
        if done > 1.5 * PART_BYTES and not killed:
            killed.append(msgspec.json.decode((own.folder / "node.json").read_bytes(), type=NodeInfo).control_pid)
            os.kill(killed[0], signal.SIGKILL)

    version = own.client.models.push("killed", path, progress=kill)
    assert killed
    assert version.result.size_bytes == path.stat().st_size
    assert min(told[told.index(max(d for d in told if d <= 2 * PART_BYTES)) :]) >= PART_BYTES  # nothing sent anew


def test_one_by_the_async_client(own: Platform, tmp_path: Path) -> None:
    path = large(tmp_path, "async")

    async def run() -> int:
        async with AsyncClient(own.client.access.url, own.client.access.api_key, own.client.access.control_url) as c:
            return (await c.models.push("async", path)).result.size_bytes

    assert asyncio.run(run()) == path.stat().st_size


def test_the_command_killed_and_typed_again(own: Platform, tmp_path: Path) -> None:
    path = large(tmp_path, "typed")
    command = [sys.executable, "-m", "headrace.cli.main", "models", "push", "typed", str(path), "--json"]
    environment = os.environ | {"HEADRACE_DATA": str(own.folder)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: any(offsets(own.client)))
    finally:
        first.kill()
        first.wait()
    # What it had sent may still be arriving, but it is not going to be finished by itself.
    assert [m.name for m in own.client.models.list() if m.name == "typed"] == []
    before = own.client.artifacts.uploads().items
    assert len(before) == 1
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert own.client.models.show("typed").latest == 1
    assert offsets(own.client) == []


def test_a_small_file_that_is_damaged_here_is_replaced_by_force(own: Platform) -> None:
    content = models.echo_onnx(7.0).content
    digest = own.client.models.push("small", content).result.digest
    stored = own.folder / "artifacts" / "sha256" / digest[:2] / digest
    stored.chmod(0o644)
    stored.write_bytes(b"x" * len(content))
    assert own.client.models.push("small", content).result.version == 1
    assert stored.read_bytes() != content  # the platform has it, as far as it knows
    own.client.models.push("small", content, force=True)
    assert stored.read_bytes() == content
    own.client.deploy("small@1", traffic=100)
    assert float(own.client.predict("small", [[1.0]]).outputs["y"][0][0]) == 8.0
