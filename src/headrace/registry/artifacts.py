"""The artifact store's port: content-addressed files, each there whole or not at all.

Every adapter keeps an artifact under ``sha256/ab/<digest>``. What is put was hashed before; what is read is hashed by
the reader.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.core.errors import InvalidInput

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact in the store."""

    digest: str
    size_bytes: int
    stored_at: float
    """Seconds since the epoch."""


class ArtifactStore(Protocol):
    """Where artifacts are kept. Each method may raise Unavailable when the store does not answer."""

    def path(self, digest: str) -> Path | None:
        """Where an artifact lies, or would, as a file of this machine; None for a store elsewhere."""

    async def size(self, digest: str) -> int | None:
        """Bytes of a stored artifact; None when it is not there."""

    async def put(self, digest: str, file: Path) -> None:
        """Store a file whose digest was checked; replaces one that is there. The file may be gone afterwards."""

    def read(self, digest: str, start: int = 0) -> AsyncIterator[bytes]:
        """The bytes of an artifact from `start` on. Raises NotFound."""

    async def delete(self, digest: str) -> None:
        """Remove an artifact; one that is not there is no error."""

    def list(self) -> AsyncIterator[Stored]:
        """Everything stored, in no order."""

    async def sweep(self, age_s: float) -> int:
        """Remove what puts that never ended have left behind, where it is older than this; how many."""


def check_digest(digest: str) -> str:
    """The digest itself. Raises InvalidInput unless it is 64 lower-case hex digits."""
    if len(digest) != 64 or not _HEX.issuperset(digest):
        raise InvalidInput("digest: expected a SHA-256 of 64 lower-case hex digits", field="digest")
    return digest


def key_of(digest: str) -> str:
    """An artifact's name within its store."""
    return f"sha256/{check_digest(digest)[:2]}/{digest}"
