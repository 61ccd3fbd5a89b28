"""What a pickle would call when it is loaded, found out without loading it, by picklescan.

A pickle is a program. No list of bad names makes one safe, so none is loaded unless an operator trusts it; what the
scanner finds is the reason that is given, and what an operator should read before trusting.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from headrace.core.errors import Unprocessable

SCANNED_MAX = 1 << 30
"""Bytes of something compressed that are looked at."""
LISTED_MAX = 8
_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
_ZIP = b"PK\x03\x04"
_MAGIC_MAX = 8


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found. Names are ``module.name``, sorted."""

    dangerous: tuple[str, ...]
    """Run code, or read and write what is not theirs."""
    unknown: tuple[str, ...]
    """Neither known to be dangerous nor to be harmless."""
    complete: bool
    """Whether all of it could be looked at: joblib writes arrays between the parts of a pickle."""

    def __str__(self) -> str:
        rest = "" if self.complete else "; not all of it could be looked at"
        if self.dangerous:
            return f"it calls {_listed(self.dangerous)}, which can run any code{rest}"
        made = f"it makes {_listed(self.unknown)}, and " if self.unknown else ""
        return f"{made}a pickle can run any code when it is loaded{rest}"


def refusal(path: Path, name: str, field: str, instead: str) -> Unprocessable:
    """Why a pickle that nobody trusts is not loaded.

    Args:
        path: of the pickle.
        name: what messages call it.
        field: the field that says to trust.
        instead: how else the model can be kept.
    """
    return Unprocessable(
        f"{name} is a pickle: {scan(path)}",
        field=field,
        hint=f"{instead}; or say --trust if you are an operator and trust whoever made it",
    )


def scan(path: Path) -> Scan:
    """Look into a pickle, also one in a zip, compressed by joblib, or of PyTorch. Raises OSError."""
    # Only what may be refused is scanned: other replicas never pay for the scanner.
    from picklescan.scanner import SafetyLevel, scan_bytes

    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # it logs what it also returns
    levels: dict[SafetyLevel, set[str]] = {level: set() for level in SafetyLevel}
    complete = True
    with path.open("rb") as file:
        try:
            for part in _parts(file):
                found = scan_bytes(part, "artifact", path.suffix)
                complete = complete and not found.scan_err
                for item in found.globals:
                    levels[item.safety].add(f"{item.module}.{item.name}")
        except Exception:  # whatever a hostile file makes the scanner raise
            complete = False
    dangerous, unknown = sorted(levels[SafetyLevel.Dangerous]), sorted(levels[SafetyLevel.Suspicious])
    return Scan(tuple(dangerous), tuple(unknown), complete)


def _parts(file: BinaryIO) -> Iterator[IO[bytes]]:
    """The file, decompressed where joblib compressed it, and the archives that lie in it if it is one."""
    start = file.read(_MAGIC_MAX)
    file.seek(0)
    if not start.startswith(_ZIP):
        yield _unpacked(file, start)
        return
    yield file
    with zipfile.ZipFile(file) as archive:
        for item in archive.infolist():
            with archive.open(item) as inner:
                start = inner.read(len(_ZIP))
                if start == _ZIP:  # the scanner looks at pickles in an archive, not at archives in one
                    yield io.BytesIO(start + inner.read(SCANNED_MAX))


def _unpacked(file: BinaryIO, start: bytes) -> IO[bytes]:
    for magic, opener in _OPENERS:
        if start.startswith(magic):
            with opener(file) as unpacked:
                return io.BytesIO(unpacked.read(SCANNED_MAX))
    if start[:1] == b"\x78":
        return io.BytesIO(zlib.decompressobj().decompress(file.read(SCANNED_MAX), SCANNED_MAX))
    return file


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - LISTED_MAX
    return ", ".join(names[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")
