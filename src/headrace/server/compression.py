"""Bodies compressed with gzip or deflate, in and out, bounded."""

from __future__ import annotations

import gzip
import zlib

from headrace.core import frames
from headrace.core.errors import InvalidInput, TooLarge

INFLATED_MAX = 256 << 20
"""Bytes that a compressed body may grow to."""


def inflate(body: memoryview, gzip: bool) -> bytes:
    """Decompress gzip or zlib/raw deflate, bounded. Raises InvalidInput or TooLarge."""
    for bits in (31,) if gzip else (15, -15):
        machine = zlib.decompressobj(bits)
        try:
            data = machine.decompress(body, INFLATED_MAX)
        except zlib.error:
            continue
        if machine.unconsumed_tail:
            raise TooLarge(f"body: grows past {INFLATED_MAX} bytes when decompressed", field="content-encoding")
        if machine.eof:
            return data
    raise InvalidInput("body: not whole, or not what content-encoding says", field="content-encoding")


def deflate(body: bytes, accepted: int) -> tuple[bytes, int]:
    """Compress as the client accepts it (flags ACCEPT_GZIP, ACCEPT_DEFLATE), gzip where it accepts both.

    Returns:
        The bytes and the reply's flag.
    """
    if accepted & frames.ACCEPT_GZIP:
        return gzip.compress(body, 1), frames.GZIP
    return zlib.compress(body, 1), frames.DEFLATE
