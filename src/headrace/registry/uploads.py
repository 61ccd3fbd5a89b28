"""Artifacts on their way in, on this machine's disk, until they are whole.

An upload is two files in the folder: ``<id>.part``, the bytes so far, and ``<id>.json``, what it is to become and how
many of those bytes were acknowledged. Bytes are appended part by part: a part is synced, then the acknowledged offset
replaced; what a crash leaves beyond the offset is cut off. So whoever comes again goes on at the offset. Everything
else in the folder is left over, and removed at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from headrace.core.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, TooLarge, Unavailable
from headrace.registry.artifacts import check_digest
from headrace.registry.folder import sync

UPLOADS_MAX = 64
"""Uploads in progress of one owner."""
READ_BYTES = 1 << 20


class About(msgspec.Struct, frozen=True):
    """An upload as its file tells of it."""

    id: str
    owner: int
    """Index of the tenant."""
    digest: str
    size_bytes: int
    offset: int
    """Bytes that were acknowledged."""
    touched_at: float
    """Seconds since the epoch: when it was begun or last got a part."""


@dataclass(slots=True)
class Upload:
    """An upload in progress."""

    about: About
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One part at a time."""
    hash: hashlib._Hash | None = None
    """Of the bytes up to the offset; None after a restart, when it is taken from the file."""


class Part:
    """Bytes on their way to the end of a file: `write` them, then `sync`; whoever opened it decides whether they stay.

    Args:
        path: the file; what it has beyond `offset` is cut off.
        offset: bytes that it has.
        limit: bytes that it may have.
        field: of the request, which says how many these are.
        known: hash of what it has; None to take it from the file.
    """

    def __init__(self, path: Path, offset: int, limit: int, field: str, known: hashlib._Hash | None) -> None:
        self.path = path
        self.offset = offset
        self._limit = limit
        self._field = field
        self._file: BinaryIO = path.open("r+b" if offset else "w+b")
        self._file.truncate(offset)
        self.hash = (known or _hash_of(self._file, offset)).copy()
        self._file.seek(offset)

    def write(self, chunk: bytes) -> None:
        """Add bytes. Raises TooLarge, Unavailable (the disk is full)."""
        self.offset += len(chunk)
        if self.offset > self._limit:
            raise TooLarge(f"{self._field}: more than {self._limit} bytes came", field=self._field)
        self.hash.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise disk(error) from None

    def sync(self) -> None:
        """Have the bytes survive a loss of power. Raises Unavailable (the disk is full)."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk(error) from None

    def close(self) -> None:
        """Done with, whatever became of it."""
        with contextlib.suppress(OSError):  # what a full disk did not take was refused already
            self._file.close()


class Uploads:
    """The folder.

    Args:
        folder: made if missing; on the file system of the artifacts.
        size_max: bytes that an artifact may have.
    """

    def __init__(self, folder: Path, size_max: int) -> None:
        self._folder = folder
        self.size_max = size_max
        self._uploads: dict[str, Upload] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._recover()

    def _recover(self) -> None:
        for path in self._folder.glob("*.json"):
            try:
                about = msgspec.json.decode(path.read_bytes(), type=About)
                if self.data(about.id).stat().st_size >= about.offset:
                    self._uploads[about.id] = Upload(about)
            except (OSError, msgspec.MsgspecError):
                continue
        known = {name for id_ in self._uploads for name in (f"{id_}.json", f"{id_}.part")}
        for path in self._folder.iterdir():
            if path.name not in known:
                path.unlink()

    def data(self, id_: str) -> Path:
        """Where an upload's bytes lie."""
        return self._folder / f"{id_}.part"

    def single(self) -> Part:
        """An artifact that comes in one request, and is in nobody's list."""
        return Part(self._folder / f"{secrets.token_hex(8)}.once", 0, self.size_max, "artifact", None)

    def part(self, upload: Upload) -> Part:
        """The next part of an upload, whose lock is held. `keep` it, or it never was."""
        about = upload.about
        return Part(self.data(about.id), about.offset, about.size_bytes, "size_bytes", upload.hash)

    def keep(self, upload: Upload, part: Part) -> None:
        """Acknowledge a part. Raises Unavailable (the disk is full)."""
        part.sync()
        try:
            self._save(msgspec.structs.replace(upload.about, offset=part.offset, touched_at=time.time()), upload)
        except OSError as error:
            raise disk(error) from None
        upload.hash = part.hash

    def _save(self, about: About, upload: Upload) -> None:
        """Write down where an upload stands. Raises OSError."""
        temporary = self._folder / f"{about.id}.new"
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(about))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._folder / f"{about.id}.json")
        sync(self._folder)
        upload.about = about

    def check(self, digest: str, size: int) -> None:
        """Raises InvalidInput, TooLarge."""
        check_digest(digest)
        if size < 1:
            raise InvalidInput(f"size_bytes: {size}, expected at least 1", field="size_bytes")
        if size > self.size_max:
            raise TooLarge(f"size_bytes: {size}, an artifact may have {self.size_max}", field="size_bytes")

    def begin(self, owner: int, digest: str, size: int) -> Upload:
        """The owner's upload of this artifact: the one in progress, or a new one.

        Raises:
            InvalidInput, TooLarge: digest or size.
            QuotaExceeded: the owner has too many in progress.
            Unavailable: the disk is full.
        """
        self.check(digest, size)
        own = [upload for upload in self._uploads.values() if upload.about.owner == owner]
        for upload in own:
            if (upload.about.digest, upload.about.size_bytes) == (digest, size):
                return upload
        if len(own) >= UPLOADS_MAX:
            raise QuotaExceeded(f"{UPLOADS_MAX} uploads are in progress: finish or cancel some", field="digest")
        about = About(secrets.token_hex(8), owner, digest, size, 0, time.time())
        upload = Upload(about, hash=hashlib.sha256())
        try:
            self.data(about.id).write_bytes(b"")
            self._save(about, upload)
        except OSError as error:
            raise disk(error) from None
        self._uploads[about.id] = upload
        return upload

    def get(self, owner: int, id_: str) -> Upload:
        """An upload of this owner. Raises NotFound."""
        upload = self._uploads.get(id_)
        if upload is None or upload.about.owner != owner:
            raise NotFound(f"upload {id_[:40]!r} is not in progress", field="id", hint="POST /api/v1/uploads")
        return upload

    def of(self, owner: int) -> list[About]:
        """An owner's uploads, the oldest first."""
        found = [upload.about for upload in self._uploads.values() if upload.about.owner == owner]
        return sorted(found, key=lambda about: about.touched_at)

    def digests(self) -> set[str]:
        """What is on its way in."""
        return {upload.about.digest for upload in self._uploads.values()}

    def checked(self, upload: Upload) -> Path:
        """The file of a whole upload whose bytes are what its digest says.

        Raises:
            Conflict: bytes are missing.
            InvalidInput: the bytes are not the digest's; the upload is then gone.
        """
        about = upload.about
        if about.offset != about.size_bytes:
            raise Conflict(
                f"offset: {about.offset} of {about.size_bytes} bytes have come", field="offset", hint="send the rest"
            )
        path = self.data(about.id)
        if upload.hash is None:
            with path.open("rb") as file:
                upload.hash = _hash_of(file, about.offset)
        found = upload.hash.hexdigest()
        if found != about.digest:
            self.remove(about.id)
            raise InvalidInput(f"digest: the bytes that came have SHA-256 {found}", field="digest")
        return path

    def remove(self, id_: str) -> None:
        """Forget an upload; its file may be gone already."""
        self._uploads.pop(id_, None)
        (self._folder / f"{id_}.json").unlink(missing_ok=True)
        self.data(id_).unlink(missing_ok=True)

    def expire(self, age_s: float) -> int:
        """Remove uploads that got nothing for so long; how many."""
        before = time.time() - age_s
        old = [u.about.id for u in self._uploads.values() if u.about.touched_at < before and not u.lock.locked()]
        for id_ in old:
            self.remove(id_)
        return len(old)


def _hash_of(file: BinaryIO, size: int) -> hashlib._Hash:
    """Of the first bytes of a file, which is left behind them."""
    found = hashlib.sha256()
    file.seek(0)
    for chunk in _chunks(file, size):
        found.update(chunk)
    return found


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := file.read(min(size, READ_BYTES))):
        size -= len(chunk)
        yield chunk


def disk(error: OSError) -> Unavailable:
    """What a disk that does not take bytes means to whoever sent them."""
    why = f"the artifact cannot be stored now: {error.strerror}; nothing was kept"
    return Unavailable(why, field="artifact", retry_after_s=60.0)
