"""Whether a UBJSON text (https://ubjson.org, as XGBoost writes it) is whole.

XGBoost's own reader trusts every length that it meets: a file that was cut short can make it read past the end of the
buffer and take the process down. So its lengths are walked here first; typed arrays, nearly all of a model, are
skipped in one step.
"""

from __future__ import annotations

from headrace.core.errors import Unprocessable

_SIZES = {b"i": 1, b"U": 1, b"I": 2, b"l": 4, b"L": 8, b"d": 4, b"D": 8, b"C": 1, b"Z": 0, b"N": 0, b"T": 0, b"F": 0}
"""Type marker -> bytes of the value."""
_WHOLE = {b"i", b"U", b"I", b"l", b"L"}
_DEPTH_MAX = 64


def check_whole(data: bytes) -> None:
    """Raises Unprocessable when the text ends early, goes on after its end, or is no UBJSON."""
    try:
        end = _value(data, 0, 0)
    except ValueError as error:
        raise Unprocessable(f"the model is damaged: {error}", field="digest") from None
    if end != len(data):
        raise Unprocessable(f"the model is damaged: {len(data) - end} bytes follow its end", field="digest")


def _take(data: bytes, at: int, size: int) -> bytes:
    return data[at : _skip(data, at, size)]


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A length with its type marker, and where it ends."""
    marker = _take(data, at, 1)
    if marker not in _WHOLE:
        raise ValueError(f"byte {at} is no length")
    size = _SIZES[marker]
    return int.from_bytes(_take(data, at + 1, size), "big", signed=marker != b"U"), at + 1 + size


def _skip(data: bytes, at: int, size: int) -> int:
    if size < 0 or at + size > len(data):
        raise ValueError(f"cut short at byte {len(data)}")
    return at + size


def _value(data: bytes, at: int, depth: int) -> int:
    """Where the value that starts at `at` ends. Raises ValueError."""
    marker = _take(data, at, 1)
    at += 1
    if marker in _SIZES:
        return _skip(data, at, _SIZES[marker])
    if marker in (b"S", b"H"):
        size, at = _length(data, at)
        return _skip(data, at, size)
    if depth == _DEPTH_MAX:
        raise ValueError(f"nested deeper than {_DEPTH_MAX}")
    if marker == b"{":
        while _take(data, at, 1) != b"}":
            size, at = _length(data, at)
            at = _value(data, _skip(data, at, size), depth + 1)
        return at + 1
    if marker == b"[":
        return _array(data, at, depth)
    raise ValueError(f"byte {at - 1} starts no value")


def _array(data: bytes, at: int, depth: int) -> int:
    """After ``[``: values up to ``]``; or ``#`` and their number; or ``$``, their type, ``#`` and their number."""
    kind = b""
    if _take(data, at, 1) == b"$":
        kind = _take(data, at + 1, 1)
        at += 2
        if kind not in _SIZES or _take(data, at, 1) != b"#":
            raise ValueError(f"byte {at - 1} is no type of an array")
    if _take(data, at, 1) == b"#":
        count, at = _length(data, at + 1)
        if kind:
            return _skip(data, at, count * _SIZES[kind])
        for _ in range(count):
            at = _value(data, at, depth + 1)
        return at
    while _take(data, at, 1) != b"]":
        at = _value(data, at, depth + 1)
    return at + 1
