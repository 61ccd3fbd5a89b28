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

from picklescan.scanner import SafetyLevel, scan_bytes

SCANNED_MAX = 1 << 30
"""Bytes of something compressed that are looked at."""
LISTED_MAX = 8
_OPENERS = ((b"\x1f\x8b", gzip.GzipFile), (b"BZh", bz2.BZ2File), (b"\xfd7zXZ", lzma.LZMAFile))
_ZIP = b"PK\x03\x04"
# It logs what it also returns.
logging.getLogger("picklescan").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found. Names are ``module.name``, sorted."""

    dangerous: tuple[str, ...]
    """Run code, or read and write what is not theirs."""
    unknown: tuple[str, ...]
    """Neither known to be dangerous nor to be harmless."""
    complete: bool
    """Whether all of it could be looked at."""

    def __str__(self) -> str:
        if self.dangerous:
            return f"it calls {_listed(self.dangerous)}, which can run any code"
        if self.unknown:
            return f"it makes {_listed(self.unknown)}, and a pickle can run any code when it is loaded"
        return "a pickle can run any code when it is loaded"


def scan(path: Path) -> Scan:
    """Look into a pickle, also one in a zip, compressed by joblib, or of PyTorch. Raises OSError."""
    with path.open("rb") as file:
        return scan_content(file.read(), path.suffix)


def scan_content(content: bytes, suffix: str = ".pkl") -> Scan:
    """See `scan`."""
    levels: dict[SafetyLevel, set[str]] = {level: set() for level in SafetyLevel}
    complete = True
    try:
        for part in _parts(content):
            found = scan_bytes(io.BytesIO(part), "artifact", suffix)
            complete = complete and not found.scan_err
            for item in found.globals:
                levels[item.safety].add(f"{item.module}.{item.name}")
    except Exception:  # whatever a hostile file makes the scanner raise
        complete = False
    dangerous, unknown = sorted(levels[SafetyLevel.Dangerous]), sorted(levels[SafetyLevel.Suspicious])
    return Scan(tuple(dangerous), tuple(unknown), complete)


def _parts(content: bytes) -> Iterator[bytes]:
    """The content, decompressed where joblib compressed it, and archives that lie in it if it is one."""
    yield _unpacked(content)
    if content.startswith(_ZIP):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for item in archive.infolist():
                with archive.open(item) as file:
                    start = file.read(len(_ZIP))
                    if start == _ZIP:  # the scanner looks at pickles in an archive, not at archives in one
                        yield start + file.read(SCANNED_MAX)


def _unpacked(content: bytes) -> bytes:
    for magic, opener in _OPENERS:
        if content.startswith(magic):
            with opener(io.BytesIO(content)) as file:
                found: bytes = file.read(SCANNED_MAX)
            return found
    if content[:1] == b"\x78":
        return zlib.decompressobj().decompress(content, SCANNED_MAX)
    return content


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - LISTED_MAX
    return ", ".join(names[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")
