"""The node's cache of artifacts that are stored elsewhere: pulled once, verified while they come, bounded in size.

An entry is ``<digest>`` and its stamp. One that is on its way is ``<digest>.<size>.pulling``, locked by the process
that pulls it; its name keeps its room. Locks are the kernel's, so that a process that is killed holds none: whoever
wants the same artifact waits for the lock and then finds it there, or goes on where the other was killed. A file that
is in use is locked too (`verified.hold`), and never evicted; of the others that whose stamp was used longest ago goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

from headrace.core.errors import NotFound, Unprocessable
from headrace.core.verified import Stamp, digest_of, is_verified, remember, stamp_path
from headrace.registry.artifacts import ArtifactStore, check_digest
from headrace.registry.folder import sync

SPARE_BYTES = 16 << 20
"""Left free on the disk, for stamps and for what else lives there."""
PULLING = ".pulling"
TRIES = 3
"""Pulls of one artifact before its bytes are called damaged: a network may corrupt some, not the same ones again."""
Progress = Callable[[int], None]
"""Told the bytes that are there."""


class Cache:
    """The folder.

    Args:
        folder: made if missing.
        max_bytes: of all artifacts in it, those on their way included.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where an artifact lies, or would."""
        return self._folder / check_digest(digest)

    async def pull(self, store: ArtifactStore, digest: str, size: int, progress: Progress = lambda _: None) -> Path:
        """Have an artifact here, verified; at once where it is.

        Raises:
            NotFound: the store does not have it.
            Unprocessable: what the store has is damaged, or the cache or the disk has no room for it.
            Unavailable: the store does not answer.
        """
        path = self.path(digest)
        if is_verified(path, digest):
            return path
        with self._lock(f"{digest}.{size}{PULLING}") as coming:
            if self._heal(path, digest):
                os.unlink(coming.name)
                return path
            try:
                self._make_room(coming.name, size)
                found = await self._receive(store, digest, coming, progress)
                self._settle(coming, path, found)
            except OSError as error:
                os.unlink(coming.name)
                raise no_room(f"the node's artifact cache cannot be written: {error.strerror}", size) from None
            except (NotFound, Unprocessable):
                os.unlink(coming.name)
                raise
        return path

    def adopt(self, digest: str, file: Path) -> None:
        """Take in a file that was checked, where there is room; it is gone afterwards in any case."""
        size = file.stat().st_size
        with contextlib.suppress(OSError, Unprocessable), self._lock(f"{digest}.{size}{PULLING}") as coming:
            try:
                if not is_verified(self.path(digest), digest):
                    self._make_room(coming.name, size)
                    os.chmod(file, 0o444)
                    os.replace(file, self.path(digest))
                    remember(self.path(digest), Stamp.of(self.path(digest).stat(), digest))
            finally:
                os.unlink(coming.name)
        file.unlink(missing_ok=True)

    def drop(self, digest: str) -> None:
        """Remove an artifact that is not in use."""
        with self._structure():
            self._evict(self.path(digest))

    @staticmethod
    def _heal(path: Path, digest: str) -> bool:
        """Whether the file that is here is good, by reading it where its stamp does not say so; a bad one goes."""
        if is_verified(path, digest):
            return True
        try:
            stamp = Stamp.of(path.stat(), digest)
            good = digest_of(path) == digest
        except OSError:
            good = False
        if good:
            remember(path, stamp)
        else:
            path.unlink(missing_ok=True)
            stamp_path(path).unlink(missing_ok=True)
        return good

    async def _receive(self, store: ArtifactStore, digest: str, coming: BufferedRandom, progress: Progress) -> str:
        """Write the artifact's bytes; begins where an earlier pull was cut off. Raises Unprocessable."""
        found = ""
        for attempt in range(TRIES):
            if attempt:
                coming.truncate(0)  # what was there was wrong, and nobody knows where
            coming.seek(0)
            known = hashlib.file_digest(coming, "sha256")
            done = coming.seek(0, os.SEEK_END)
            async for chunk in store.read(digest, done):
                coming.write(chunk)
                known.update(chunk)
                done += len(chunk)
                progress(done)
            found = known.hexdigest()
            if found == digest:
                return digest
        raise Unprocessable(
            f"the artifact in the store is damaged: its SHA-256 is {found[:12]}, the version's is {digest[:12]}",
            field="digest",
            hint="send the file again: headrace models push ... --force",
        )

    def _settle(self, coming: BufferedRandom, path: Path, digest: str) -> None:
        coming.flush()
        os.fsync(coming.fileno())
        os.fchmod(coming.fileno(), 0o444)
        os.replace(coming.name, path)
        sync(self._folder)
        remember(path, Stamp.of(path.stat(), digest))

    # ------------------------------------------------------------------------------------------------ room
    def _make_room(self, own: str, size: int) -> None:
        """Evict until `size` more bytes fit. Raises Unprocessable."""
        if size > self._max_bytes:
            raise no_room(f"the node's artifact cache may have {self._max_bytes} bytes (cache_max_bytes)", size)
        with self._structure():
            by_use = sorted(self._entries(), key=lambda entry: entry[1])
            total = sum(self._expected(path) for path, _ in by_use if str(path) != own)
            have = os.path.getsize(own)  # of a pull that goes on, these are on the disk already
            for path, _ in by_use:
                free = shutil.disk_usage(self._folder).free + have - SPARE_BYTES
                if total + size <= self._max_bytes and size <= free:
                    return
                bytes_of = self._expected(path)
                if str(path) != own and self._evict(path):
                    total -= bytes_of
            free = shutil.disk_usage(self._folder).free + have - SPARE_BYTES
        if size > free:
            raise no_room(f"the disk of the node's artifact cache is full: {max(free, 0)} bytes are free", size)
        if total + size > self._max_bytes:
            raise no_room(
                f"the node's artifact cache may have {self._max_bytes} bytes (cache_max_bytes), "
                f"and live replicas use {total}",
                size,
            )

    def _entries(self) -> Iterator[tuple[Path, float]]:
        """Artifacts and pulls, with when they were last used."""
        for path in self._folder.iterdir():
            if len(path.name) == 64 or path.name.endswith(PULLING):
                with contextlib.suppress(FileNotFoundError):
                    stamp = stamp_path(path)
                    yield path, (stamp if stamp.exists() else path).stat().st_mtime

    @staticmethod
    def _expected(path: Path) -> int:
        """Bytes that an entry has or will have."""
        if path.name.endswith(PULLING):
            return int(path.name.split(".")[1])
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0

    @staticmethod
    def _evict(path: Path) -> bool:
        """Remove an entry unless it is in use, or on its way."""
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            stamp_path(path).unlink(missing_ok=True)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    # ------------------------------------------------------------------------------------------------ locks
    @contextmanager
    def _lock(self, name: str) -> Iterator[BufferedRandom]:
        """The file of this name, made if missing, and nobody else's until the end."""
        path = self._folder / name
        while True:
            file = open(str(path), "a+b")  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_named(file, path):  # else whoever had it has renamed or removed it
                    yield file
                    return
            finally:
                with contextlib.suppress(OSError):  # what a full disk did not take
                    file.close()

    @contextmanager
    def _structure(self) -> Iterator[None]:
        """One process at a time makes room."""
        with (self._folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_named(file: BufferedRandom, path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def no_room(why: str, size: int) -> Unprocessable:
    """An artifact that the cache cannot take."""
    return Unprocessable(f"no room for the artifact's {size} bytes: {why}", field="digest")
