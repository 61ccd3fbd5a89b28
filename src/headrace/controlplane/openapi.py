"""/openapi.json: what the framework reads out of the handlers, and what it cannot know.

That is: the problem documents behind every error status, the headers that mutations honour, the bytes of an artifact,
and the exact schemas of msgspec's types (which refuse unknown fields).
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Litestar

from headrace.core.resources import Problem

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
ALWAYS = {"400": "A field, parameter or header is not as described; `field` names it.", "401": "No key, or no such."}
EXAMPLE = Problem(
    "urn:headrace:problem:invalid-input",
    "Bad Request",
    400,
    "weights: they add up to 99 percent, expected 100",
    "invalid-input",
    "weights",
)
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key with the same request within a day does it once; with another it is refused (409).",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    "example": "deploy-churn-4",
}
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "Only if the policy is still at this epoch: the ETag of GET.",
    "schema": {"type": "string", "pattern": '^("?[0-9]{1,9}"?|\\*)$'},
    "example": '"3"',
}


def document(app: Litestar) -> bytes:
    """The OpenAPI document of an application, as JSON."""
    schema = app.openapi_schema.to_schema()
    _, problem = msgspec.json.schema_components((Problem,), ref_template="#/components/schemas/{name}")
    problem["Problem"]["examples"] = [msgspec.to_builtins(EXAMPLE)]
    components = schema.setdefault("components", {})
    components["schemas"] = components.get("schemas", {}) | problem
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if isinstance(operation, dict) and "responses" in operation:
                _complete(path, method, operation)
    return msgspec.json.encode(schema)


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    mutation = method not in ("get", "head")
    statuses = dict(ALWAYS)
    statuses["403"] = "The key's role or tenant does not reach this."
    statuses["500"] = "Our fault."
    if "{" in path or mutation or operation.get("parameters"):
        statuses["404"] = "No such resource."
    if mutation:
        statuses["409"] = "The resource's state does not allow it, or the Idempotency-Key came with another request."
        statuses["413"] = "The body is too large."
        if "artifacts" not in path:
            operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
    if path.endswith("/traffic") and method == "put":
        operation["parameters"].append(IF_MATCH)
        statuses["412"] = "If-Match names another epoch than the current one."
    if path.endswith("/versions") and method == "post":
        statuses["422"] = "The artifact does not load, crashes, or is a pickle that nobody trusted."
    if "artifacts" in path and method == "put":
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": content}
    responses = operation["responses"]
    responses.pop("400", None)
    for status, description in statuses.items():
        responses[status] = {"description": description}
        if method != "head":
            responses[status]["content"] = PROBLEM
