"""Every error of the API as an RFC 9457 problem document."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import inspect

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
        return response(_of_validation(request, error))
    if status >= 500:
        return of_any(request, error)
    detail = error.detail
    if status == 404:
        detail = f"no such resource: {request.url.path}"
    elif status == 405:
        detail = f"{request.method} is not allowed here"
    return response(make(status, _CODES.get(status, "invalid-input"), detail), dict(error.headers or {}))


def _of_validation(request: Request[Any, Any, Any], error: ValidationException) -> Problem:
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
    if message.startswith("Invalid enum value") and (words := _words(request, field)):
        message = f"{message.removeprefix('Invalid enum value ')}, expected {', '.join(words)}"
    text = f"{field}: {message}" if field else message
    return make(400, "invalid-input", text, field or None)


def _words(request: Request[Any, Any, Any], path: str) -> list[str]:
    """The words that a field of the body may be, which msgspec's message leaves out; empty for a list's items."""
    body = request.route_handler.parsed_fn_signature.parameters.get("data")
    if body is None:
        return []
    here: list[inspect.Type] = [inspect.type_info(body.annotation)]
    for name in path.split("."):
        structs = [kind for kind in _alternatives(here) if isinstance(kind, inspect.StructType)]
        here = [field.type for kind in structs for field in kind.fields if field.encode_name == name]
    literals = [kind for kind in _alternatives(here) if isinstance(kind, inspect.LiteralType)]
    return [str(value) for kind in literals for value in kind.values]


def _alternatives(kinds: list[inspect.Type]) -> list[inspect.Type]:
    """Unions taken apart."""
    return [one for kind in kinds for one in (kind.types if isinstance(kind, inspect.UnionType) else (kind,))]


def of_encoding(_: Request[Any, Any, Any], error: UnicodeDecodeError) -> Response[bytes]:
    """A body that is no text."""
    return response(make(400, "invalid-input", f"body: not UTF-8 at byte {error.start}", "body"))


def of_any(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Whatever else: our fault; logged, and nothing of it told."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return response(make(500, "internal", "internal error; it was logged"))
