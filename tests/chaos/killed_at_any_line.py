"""Runs a piece of work again and again, killed -9 before each line that it executes, and checks after each death that
whoever comes next brings it to its end: ``python -m tests.chaos.killed_at_any_line SCENARIO FOLDER``."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from headrace.core.verified import is_verified
from headrace.registry.cache import Cache
from headrace.registry.folder import FolderStore
from headrace.registry.uploads import Uploads

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PART = 4096
TRACED = ("core/verified.py", "registry/cache.py", "registry/folder.py", "registry/uploads.py")


def trace(line: int) -> Callable[[FrameType, str, Any], Any]:
    """Kills the process before the `line`-th line of ours."""
    left = line

    def tracer(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(TRACED):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return tracer

    return tracer


def upload(folder: Path) -> None:
    """Bring an artifact into the store part by part, from wherever an upload of it stands."""
    uploads, store = Uploads(folder / "incoming", 1 << 20), FolderStore(folder)
    if asyncio.run(store.size(DIGEST)) is not None:
        return
    one = uploads.begin(1, DIGEST, len(CONTENT))
    acknowledged = folder / "acknowledged"
    if acknowledged.exists():
        assert one.about.offset >= int(acknowledged.read_text()), "an acknowledged part is lost"
    while (start := one.about.offset) < len(CONTENT):
        part = uploads.part(one)
        part.write(CONTENT[start : start + PART])
        uploads.keep(one, part)
        part.close()
        with (folder / "said").open("w") as file:
            file.write(str(one.about.offset))
        os.replace(folder / "said", acknowledged)
    path = uploads.checked(one)
    asyncio.run(store.put(DIGEST, path))
    uploads.remove(one.about.id)


def check_upload(folder: Path) -> None:
    store = FolderStore(folder)
    found = store.path(DIGEST)
    assert not found.exists() or found.read_bytes() == CONTENT, "visible before it was whole"
    upload(folder)
    assert found.read_bytes() == CONTENT
    Uploads(folder / "incoming", 1 << 20)
    left = [path.name for path in (folder / "incoming").iterdir()]
    assert left == [], left


def pull(folder: Path) -> None:
    """Bring an artifact into a cache that has to evict another."""
    store = FolderStore(folder / "store")
    if asyncio.run(store.size(DIGEST)) is None:
        (folder / "file").write_bytes(CONTENT)
        asyncio.run(store.put(DIGEST, folder / "file"))
    other = b"x" * len(CONTENT)
    (folder / "other").write_bytes(other)
    cache = Cache(folder / "cache", 15_000)
    cache.adopt(hashlib.sha256(other).hexdigest(), folder / "other")
    asyncio.run(cache.pull(store, DIGEST, len(CONTENT)))


def check_pull(folder: Path) -> None:
    found = folder / "cache" / DIGEST
    assert not is_verified(found, DIGEST) or found.read_bytes() == CONTENT, "verified before it was whole"
    pull(folder)
    assert found.read_bytes() == CONTENT
    assert is_verified(found, DIGEST)
    size = sum(path.stat().st_size for path in found.parent.iterdir() if len(path.name) == 64)
    assert size <= 15_000, size
    assert not list(found.parent.glob("*.pulling"))


SCENARIOS = {"upload": (upload, check_upload), "pull": (pull, check_pull)}


def main() -> None:
    work, check = SCENARIOS[sys.argv[1]]
    line = 1
    while True:
        folder = Path(sys.argv[2]) / str(line)
        folder.mkdir()
        child = os.fork()
        if child == 0:
            threading.settrace(trace(line))
            sys.settrace(threading.gettrace())
            try:
                work(folder)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        check(folder)
        shutil.rmtree(folder)
        if code == 0:
            print(line, flush=True)
            return
        line += 1


if __name__ == "__main__":
    main()
