"""The artifact store as a folder of this machine: a replica opens the file itself, nothing is copied."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from headrace.core.errors import NotFound
from headrace.core.verified import Stamp, remember, stamp_path
from headrace.registry.artifacts import Stored, key_of

CHUNK_BYTES = 1 << 20


class FolderStore:
    """Implements `ArtifactStore`.

    Args:
        folder: where artifacts are kept; made if missing. What is put must lie on the same file system.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """See `ArtifactStore.path`."""
        return self._folder / key_of(digest)

    async def size(self, digest: str) -> int | None:
        """See `ArtifactStore.size`."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    async def put(self, digest: str, file: Path) -> None:
        """See `ArtifactStore.put`."""
        await asyncio.to_thread(self._put, digest, file)

    def _put(self, digest: str, file: Path) -> None:
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(file)
        os.chmod(file, 0o444)
        os.replace(file, target)
        # Each name lives in the folder above it, and that one may be new too.
        for folder in (target.parent, target.parent.parent, target.parent.parent.parent):
            sync(folder)
        remember(target, Stamp.of(target.stat(), digest))

    async def read(self, digest: str, start: int = 0) -> AsyncIterator[bytes]:
        """See `ArtifactStore.read`."""
        try:
            file = self.path(digest).open("rb")
        except FileNotFoundError:
            raise NotFound(f"digest: no artifact {digest[:12]}... in the store", field="digest") from None
        with file:
            file.seek(start)
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk

    async def delete(self, digest: str) -> None:
        """See `ArtifactStore.delete`."""
        path = self.path(digest)
        path.unlink(missing_ok=True)
        stamp_path(path).unlink(missing_ok=True)

    async def list(self) -> AsyncIterator[Stored]:
        """See `ArtifactStore.list`."""
        for path in await asyncio.to_thread(lambda: list(self._folder.glob("sha256/??/*"))):
            if len(path.name) == 64:
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue  # deleted meanwhile
                yield Stored(path.name, found.st_size, found.st_mtime)

    async def sweep(self, age_s: float) -> int:
        """Nothing: a file that was not put whole never came here."""
        return 0


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, survive a loss of power."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
