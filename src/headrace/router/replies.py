"""HTTP responses as bytes, built once where they can be."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import msgspec

HEADS: Final = [
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % n for n in range(4096)
]
"""Response heads by body length."""
_REASONS = {status.value: status.phrase for status in HTTPStatus}


def head(length: int) -> bytes:
    """The head of a 200 JSON response with a body of `length` bytes."""
    if length < 4096:
        return HEADS[length]
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % length


def error(
    status: int, message: str, *, retry_after_s: int | None = None, close: bool = False, allow: str = ""
) -> bytes:
    """An Open Inference Protocol error: ``{"error": message}``."""
    body = msgspec.json.encode({"error": message})
    extra = "" if retry_after_s is None else f"retry-after: {retry_after_s}\r\n"
    if status == 401:
        extra += 'www-authenticate: Bearer realm="headrace"\r\n'
    if allow:
        extra += f"allow: {allow}\r\n"
    if close:
        extra += "connection: close\r\n"
    return (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\ncontent-type: application/json\r\n{extra}"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


def method_not_allowed(allowed: str) -> bytes:
    """405 for a path that knows other methods: ``GET, HEAD``."""
    return error(405, f"use {allowed.partition(',')[0]}", allow=allowed)


def json(value: object, status: int = 200) -> bytes:
    """A JSON response."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    if status == 200:
        return head(len(body)) + body
    reason = _REASONS.get(status, "")
    return (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


MALFORMED: Final = error(400, "malformed HTTP request", close=True)
INTERNAL: Final = error(500, "internal error", close=True)
UNAUTHENTICATED: Final = error(401, "no API key, or one that nobody holds: send Authorization: Bearer hr_...")
TOO_SLOW: Final = error(408, "the request did not arrive in time", close=True)
HEADERS_TOO_LARGE: Final = error(431, "the headers are too large: at most 32 KiB", close=True)
IN_FLIGHT: Final = error(429, "the tenant has too many requests in flight", retry_after_s=1)
DEADLINE: Final = error(504, "the deadline passed before an answer was ready")
LOST: Final = error(503, "the replica was lost and no other could take the request", retry_after_s=1)
CONNECTIONS: Final = error(503, "too many connections", retry_after_s=1, close=True)
