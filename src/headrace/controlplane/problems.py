"""Every error of the API as an RFC 9457 problem document."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from headrace.core.errors import HeadraceError, RetryLater
from headrace.core.resources import Problem

log = logging.getLogger("headrace.api")
_CODES = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 400: "invalid-input", 415: "invalid-input"}


def response(problem: Problem, headers: dict[str, str] | None = None) -> Response[bytes]:
    """The problem as a response."""
    return Response(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type="application/problem+json",
        headers=headers,
    )


def make(status: int, code: str, detail: str, field: str | None = None, hint: str | None = None) -> Problem:
    """A problem document."""
    title = HTTPStatus(status).phrase
    return Problem(f"urn:headrace:problem:{code}", title, status, detail, code, field, hint)


def of_ours(_: Request[Any, Any, Any], error: HeadraceError) -> Response[bytes]:
    """An error of our tree."""
    headers = {"retry-after": str(int(error.retry_after_s))} if isinstance(error, RetryLater) else {}
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="headrace"'
    return response(make(error.status, error.code, error.message, error.field, error.hint), headers)


def of_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """An error of the framework: no such route, wrong method, a body or parameter that does not fit."""
    status = error.status_code
    if isinstance(error, ValidationException):
        return response(_of_validation(error))
    if status >= 500:
        return of_any(request, error)
    detail = error.detail
    if status == 404:
        detail = f"no such resource: {request.url.path}"
    elif status == 405:
        detail = f"{request.method} is not allowed here"
    return response(make(status, _CODES.get(status, "invalid-input"), detail), dict(error.headers or {}))


def _of_validation(error: ValidationException) -> Problem:
    """The field and what was expected, out of what the framework says."""
    details = [item for item in error.extra or [] if isinstance(item, dict)]
    if details:
        field, message = str(details[0].get("key", "")), str(details[0].get("message", error.detail))
    else:
        field, message = "", error.detail
    path = re.search(r"at `\$\.([^`]+)`", message)
    if path:
        field = path.group(1)
        message = message.split(" - at `")[0]
    unknown = re.search(r"contains unknown field `([^`]*)`", message)
    if unknown:
        field = f"{field}.{unknown.group(1)}" if field and field != "data" else unknown.group(1)
    missing = re.search(r"missing required field `([^`]+)`", message)
    if missing:
        field = missing.group(1)
    text = f"{field}: {message}" if field else message
    return make(400, "invalid-input", text, field or None)


def of_encoding(_: Request[Any, Any, Any], error: UnicodeDecodeError) -> Response[bytes]:
    """A body that is no text."""
    return response(make(400, "invalid-input", f"body: not UTF-8 at byte {error.start}", "body"))


def of_any(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Whatever else: our fault; logged, and nothing of it told."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return response(make(500, "internal", "internal error; it was logged"))
