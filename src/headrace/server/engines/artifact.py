"""Artifact files as the adapters meet them.

A stored artifact is content-addressed and has no extension, so its format is told by its first bytes, never by its
name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from headrace.core.errors import Unprocessable

Kind = Literal["zip", "tar", "pickle", "compressed", "text", "binary"]
"""What the first bytes say. `compressed`: gzip, zlib, bzip2, xz or lz4, of something not looked at."""

_COMPRESSED = (
    b"\x1f\x8b",
    b"\x78\x01",
    b"\x78\x5e",
    b"\x78\x9c",
    b"\x78\xda",
    b"BZh",
    b"\xfd7zXZ",
    b"\x04\x22\x4d\x18",
)
_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s/:'\"]+/)+")
_HEAD = 4096


def head(path: Path) -> bytes:
    """The first bytes of the artifact. Raises Unprocessable when it is missing or empty."""
    try:
        with path.open("rb") as file:
            start = file.read(_HEAD)
    except OSError as error:
        raise Unprocessable(f"the artifact cannot be read: {error.strerror}", field="digest") from None
    if not start:
        raise Unprocessable("the artifact is empty", field="digest", hint="push the model file again")
    return start


def kind_of(path: Path) -> Kind:
    """The kind of file, by its first bytes. Raises Unprocessable when it is missing or empty."""
    start = head(path)
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[257:262] == b"ustar":
        return "tar"
    if start[0] == 0x80 and start[1:2] <= b"\x05":  # the PROTO opcode and its protocol, from 2 on
        return "pickle"
    if start.startswith(_COMPRESSED):
        return "compressed"
    try:
        start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3 or len(start) < _HEAD:  # else only a character cut at the end of `head`
            return "binary"
    return "binary" if b"\0" in start else "text"


def reason(error: BaseException, path: Path) -> str:
    """What an exception says, fit for a caller: its first line, short, without the machine's folders."""
    lines = str(error).replace(str(path), "the artifact").strip().splitlines()
    text = _FOLDERS.sub("", lines[0] if lines else "")[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
