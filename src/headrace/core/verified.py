"""Files that are known to hold what their digest says, and how that is remembered.

Hashing gigabytes at every start of a replica would cost more than loading them. So whoever has hashed a file writes a
stamp beside it, ``<name>.verified``: the digest, and which file it was by device, inode, size and times. A file that
was written to, replaced or renamed since has another change time, which no program can set, and is hashed again. What
a disk loses without any write is found by hashing again once a stamp is `RENEW_S` old.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from pathlib import Path

import msgspec

from headrace.core.errors import Unprocessable

RENEW_S = 7 * 24 * 3600.0
"""A file that was last hashed so long ago is hashed again."""
SUFFIX = ".verified"


class Stamp(msgspec.Struct, frozen=True):
    """What was hashed, when, and what came out."""

    digest: str
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    at: float
    """Seconds since the epoch."""

    @classmethod
    def of(cls, found: os.stat_result, digest: str) -> Stamp:
        """The stamp of a file that has this digest."""
        return cls(digest, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, time.time())

    def covers(self, found: os.stat_result, digest: str) -> bool:
        """Whether it speaks of this file, untouched, and is not too old."""
        fresh = Stamp.of(found, digest)
        same = msgspec.structs.replace(fresh, at=self.at) == self
        return same and 0 <= fresh.at - self.at < RENEW_S


def stamp_path(path: Path) -> Path:
    """Where a file's stamp lies."""
    return path.with_name(path.name + SUFFIX)


def remember(path: Path, stamp: Stamp) -> None:
    """Stamp a file that was hashed. A disk without room for the stamp costs another hash later, no more."""
    content = msgspec.json.encode(stamp)
    with contextlib.suppress(OSError):
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=".stamp-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
            os.replace(name, stamp_path(path))
        except OSError:
            os.unlink(name)


def is_verified(path: Path, digest: str) -> bool:
    """Whether the file is there and known to hold what `digest` says, without reading it."""
    try:
        stamp = msgspec.json.decode(stamp_path(path).read_bytes(), type=Stamp)
        return stamp.covers(path.stat(), digest)
    except (OSError, msgspec.MsgspecError):
        return False


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, digest: str) -> None:
    """Check that the file is what was registered: by its stamp, else by hashing it, and then stamp it.

    Raises:
        Unprocessable: it is missing or damaged.
    """
    if is_verified(path, digest):
        return
    try:
        stamp = Stamp.of(path.stat(), digest)  # as it was before: one that changes under our hands is not covered
        found = digest_of(path)
    except OSError as error:
        raise Unprocessable(f"the artifact cannot be read: {error.strerror}", field="digest") from None
    if found != digest:
        raise Unprocessable(
            f"the artifact is damaged: its SHA-256 is {found[:12]}, the version's is {digest[:12]}",
            field="digest",
            hint="send the file again: headrace models push ... --force",
        )
    remember(path, stamp)


def hold(path: Path, digest: str) -> int | None:
    """Take a verified file into use: it is not evicted until the descriptor that this returns is closed. None when it
    is not there, or not verified."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # It may have been evicted between the two: then the lock is on a file that has no name any more.
        if os.fstat(fd).st_ino == path.stat().st_ino and is_verified(path, digest):
            os.utime(stamp_path(path))  # the order of eviction
            return fd
    os.close(fd)
    return None
