"""Content-addressed artifacts in a folder: ``sha256/ab/<digest>``.

An artifact appears whole or not at all: it is written beside, synced, checked against its digest, renamed, and the
folder synced. What a crash leaves behind are temporary files, removed at the next start.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from types import TracebackType

from headrace.core.errors import InvalidInput, TooLarge

_HEX = frozenset("0123456789abcdef")


def check_digest(digest: str) -> str:
    """The digest itself. Raises InvalidInput unless it is 64 lower-case hex digits."""
    if len(digest) != 64 or not _HEX.issuperset(digest):
        raise InvalidInput("digest: expected a SHA-256 of 64 lower-case hex digits", field="digest")
    return digest


class Artifacts:
    """The folder.

    Args:
        folder: where artifacts are kept; made if missing.
        size_max: bytes that one may have.
    """

    def __init__(self, folder: Path, size_max: int) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self.size_max = size_max
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left in self._incoming.iterdir():
            left.unlink()

    def path(self, digest: str) -> Path:
        """Where an artifact lies, or would."""
        return self._folder / "sha256" / check_digest(digest)[:2] / digest

    def size(self, digest: str) -> int | None:
        """Bytes of a stored artifact; None when it is not there."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, digest: str) -> Upload:
        """Start to store an artifact."""
        return Upload(self.path(digest), self._incoming, digest, self.size_max)


class Upload:
    """An artifact on its way in: `write` its bytes, then `commit`; left without, nothing stays."""

    def __init__(self, target: Path, incoming: Path, digest: str, size_max: int) -> None:
        self._target = target
        self._digest = digest
        self._size_max = size_max
        self._hash = hashlib.sha256()
        self.size = 0
        fd, name = tempfile.mkstemp(dir=incoming)
        self._file = os.fdopen(fd, "wb")
        self._path = Path(name)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Add bytes. Raises TooLarge."""
        self.size += len(chunk)
        if self.size > self._size_max:
            raise TooLarge(f"the artifact is larger than {self._size_max} bytes", field="artifact")
        self._hash.update(chunk)
        self._file.write(chunk)

    def commit(self) -> None:
        """Make it the artifact. Raises InvalidInput when the bytes are not the digest's."""
        found = self._hash.hexdigest()
        if found != self._digest:
            raise InvalidInput(f"digest: the bytes that came have SHA-256 {found}", field="digest")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._target.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(self._path, 0o444)
        os.replace(self._path, self._target)
        # Each name lives in the folder above it, and that one may be new too.
        for folder in (self._target.parent, self._target.parent.parent, self._target.parent.parent.parent):
            _sync(folder)


def _sync(folder: Path) -> None:
    """Have a folder's names survive a loss of power."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
