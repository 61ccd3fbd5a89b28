"""/openapi.json: what the framework reads out of the handlers, and what it cannot know.

That is: the problem documents behind every error status, the headers that mutations honour, the bytes of an artifact,
and the exact schemas of msgspec's types (which refuse unknown fields).
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Litestar

from headrace.controlplane.deploying import MEMORY_MB
from headrace.controlplane.platform import REPLICAS_MAX, SHARE_MIN
from headrace.core import optimization, reference, resources, schema, specs
from headrace.core.golden import CASES_MAX
from headrace.core.names import ALIAS, DEVICE, NAME
from headrace.core.resources import Problem
from headrace.registry.registration import BATCH_MAX, ENTRIES_MAX, FEATURE, RUN_LIMIT_S, TEXT_MAX, VERSION_MAX

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
    "description": "Only if the resource is still as at this ETag of its GET.",
    "schema": {"type": "string"},
    "example": '"3"',
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "`*`: only if it is not there yet.",
    "schema": {"enum": ["*"]},
}
REASON = {
    "name": "X-Reason",
    "in": "header",
    "required": False,
    "description": "Why, for the audit, where the body has no reason; percent-encoded UTF-8.",
    "schema": {"type": "string"},
    "example": "more%20complaints",
}
DEPLOY = ("post", "/api/v1/deployments")
CONDITIONAL = (
    DEPLOY,
    ("delete", "/api/v1/deployments/{reference}"),
    ("put", "/api/v1/models/{model}/traffic"),
    ("put", "/api/v1/models/{model}/aliases/{alias}"),
    ("delete", "/api/v1/models/{model}/aliases/{alias}"),
)
"""Operations beside PATCH that honour If-Match."""

NAMED = {"pattern": f"^{NAME.pattern}$"}
DIGEST = {"pattern": "^[0-9a-f]{64}$"}
RATE = {"exclusiveMinimum": 0, "maximum": 1e9}
NAMED_VERSION = f"([1-9][0-9]{{0,8}}|{ALIAS.pattern})"
VERSION_OR_ALIAS = {"minimum": 1, "maximum": (1 << 31) - 1, "pattern": f"^{NAMED_VERSION}$"}
LIMITS: dict[str, dict[str, dict[str, Any]]] = {
    "TenantCreate": {"name": NAMED},
    "Quota": {"rate_per_s": RATE, "burst": RATE, "max_in_flight": {"minimum": 1, "maximum": 10_000_000}},
    "TenantUpdate": {"rate_per_s": RATE, "burst": RATE, "max_in_flight": {"minimum": 1, "maximum": 10_000_000}},
    "KeyCreate": {"label": {"maxLength": 200}, "account": {"maxLength": 100}},
    "Golden": {"cases": {"minItems": 1, "maxItems": CASES_MAX}, "tolerance": {"minimum": 0}},
    "GoldenCase": {"outputs": {"minItems": 1}, "name": {"maxLength": 100}, "tolerance": {"minimum": 0}},
    "Lineage": {
        "training_set": {"maxLength": TEXT_MAX},
        "code": {"maxLength": TEXT_MAX},
        "parent": {"pattern": f"^({NAME.pattern}@)?{NAMED_VERSION}$"},
        "features": {"maxItems": ENTRIES_MAX, "items": {"type": "string", "pattern": f"^{FEATURE.pattern}$"}},
        "metadata": {"maxProperties": ENTRIES_MAX},
    },
    "KeyRotate": {"overlap_s": {"minimum": 0, "maximum": 30 * 86_400}},
    "ModelUpdate": {
        "timeout_s": {"exclusiveMinimum": 0, "maximum": 3600},
        "body_max_bytes": {"minimum": 1, "maximum": 1 << 30},
    },
    "VersionCreate": {
        "digest": DIGEST,
        "file_name": {"pattern": "^[^/\\x00]{1,255}$"},
        "version": {"minimum": 1, "maximum": VERSION_MAX},
    },
    "EngineOptions": {
        "batch_max": {"minimum": 1, "maximum": BATCH_MAX},
        "run_limit_s": {"minimum": RUN_LIMIT_S[0], "maximum": RUN_LIMIT_S[1]},
    },
    "DeploymentCreate": {
        "model": {"pattern": f"^({NAME.pattern}/)?{NAME.pattern}(@{NAMED_VERSION})?$"},
        "version": VERSION_OR_ALIAS,
        "replicas": {"minimum": 0, "maximum": REPLICAS_MAX},
        "threads": {"minimum": 1, "maximum": 256},
        "memory_mb": {"minimum": MEMORY_MB[0], "maximum": MEMORY_MB[1]},
        "traffic_percent": {"maximum": 100, "anyOf": [{"const": 0}, {"minimum": SHARE_MIN}]},
    },
    "DeploymentUpdate": {"replicas": {"minimum": 0, "maximum": REPLICAS_MAX}},
    "Sample": {"digest": DIGEST, "file_name": {"maxLength": 255}, "label": {"maxLength": 255}},
    "OptimizationCreate": {"tolerance": {"minimum": 0, "exclusiveMaximum": 1}},
    "UploadCreate": {"digest": DIGEST, "size_bytes": {"minimum": 1}},
    "CollectionCreate": {"grace_s": {"minimum": 0, "maximum": 1e9}},
    "OverrideUpdate": {"version": VERSION_OR_ALIAS},
    "AliasUpdate": {"version": VERSION_OR_ALIAS},
    "TrafficUpdate": {
        "weights": {
            "minProperties": 1,
            "propertyNames": {"pattern": f"^{NAMED_VERSION}$"},
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": 100},
            "description": "Version -> percent; they add up to 100, and the smallest share is .01.",
            "examples": [{"3": 90, "4": 10}],
        }
    },
}
"""What the use cases check of a field beyond its type."""
BYTES = ("/api/v1/artifacts/{", "/api/v1/uploads")
"""Paths of artifacts on their way in: what is sent twice is the same by its digest, or its place."""
PARAMETERS: dict[str, dict[str, Any]] = {
    "digest": DIGEST,
    "content-range": {"pattern": "^bytes [0-9]{1,15}-[0-9]{1,15}/[0-9]{1,15}$", "examples": ["bytes 0-1023/4096"]},
    "model": {"examples": ["churn"]},
    "name": {"examples": ["default"]},
    "input": {"pattern": "^[0-9a-f]{1,32}$"},
    "to": {"examples": ["risk"]},
    "pinned": {"examples": ["risk"]},
    "reference": {"pattern": f"^{NAME.pattern}@{NAMED_VERSION}$", "examples": ["churn@4"]},
    "number": {"pattern": f"^{NAMED_VERSION}$", "examples": ["1"]},
    "old": {"pattern": f"^{NAMED_VERSION}$", "examples": ["1"]},
    "new": {"pattern": f"^{NAMED_VERSION}$", "examples": ["1"]},
    "alias": {"pattern": f"^{ALIAS.pattern}$", "examples": ["champion"]},
    "anchor": {"pattern": "^[1-9][0-9]{0,17}:[0-9a-f]{64}$", "examples": ["57:" + "0" * 64]},
    "since": {"format": "date-time", "examples": ["2026-01-31T08:00:00Z"]},
}
CURSORS = {
    "changes": "^[0-9]{1,18}$",
    "history": "^[0-9]{1,18}$",
    "models/{model}/versions": "^[0-9]{1,18}$",
    "versions": f"^{NAME.pattern}/{NAME.pattern}@[1-9][0-9]{{0,8}}$",
    "traffic": f"^{NAME.pattern}/{NAME.pattern}$",
    "artifacts": DIGEST["pattern"],
    "tenants": f"^{NAME.pattern}$",
    "keys": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z,hr_[0-9a-f]{12}$",
    "models": f"^{NAME.pattern}/{NAME.pattern}$",
    "jobs": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z,job-[0-9a-f]{12}$",
    "devices": f"^{DEVICE.pattern}$",
    "deployments": f"^{NAME.pattern}/{NAME.pattern}@[1-9][0-9]{{0,8}}$",
    "quarantine": f"^{NAME.pattern}/{NAME.pattern}@[1-9][0-9]{{0,8}}/[0-9a-f]{{32}}$",
}
"""By a list's path, or its end."""


def document(app: Litestar) -> bytes:
    """The OpenAPI document of an application, as JSON."""
    document: dict[str, Any] = app.openapi_schema.to_schema()
    components = document.setdefault("components", {})
    components["schemas"] = components.get("schemas", {}) | _schemas()
    tiers = components["schemas"]["DeploymentCreate"]["properties"]["tiers"]
    tiers["items"]["enum"] = sorted(app.state["platform"].tiers)
    tiers["uniqueItems"] = True
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if isinstance(operation, dict) and "responses" in operation:
                _complete(path, method, operation)
    return msgspec.json.encode(document)


def _schemas() -> dict[str, Any]:
    """The exact schemas of all our structs, by name, with what is checked of their fields."""
    structs = [
        kind
        for module in (resources, specs, schema, reference, optimization)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not getattr(kind, "__parameters__", ())
    ]
    _, found = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for name, fields in LIMITS.items():
        for field, limits in fields.items():
            described = found[name]["properties"][field]
            choices = described.get("anyOf", [described])
            for choice in choices:
                if choice.get("type") != "null":
                    choice |= limits
    found["Problem"]["examples"] = [msgspec.to_builtins(EXAMPLE)]
    return found


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    mutation = method not in ("get", "head")
    for parameter in operation.get("parameters", ()):
        choices = parameter["schema"].pop("oneOf", [{}])
        parameter["schema"] |= next(choice for choice in choices if choice.get("type") != "null")
        parameter["schema"] |= PARAMETERS.get(parameter["name"], {})
        if parameter["name"] == "cursor":
            below = path.removeprefix("/api/v1/")
            parameter["schema"]["pattern"] = CURSORS.get(below) or CURSORS[path.rpartition("/")[2]]
    statuses = dict(ALWAYS)
    statuses["403"] = "The key's role or tenant does not reach this."
    statuses["500"] = "Our fault."
    if "{" in path or mutation or operation.get("parameters"):
        statuses["404"] = "No such resource."
    if mutation:
        statuses["409"] = "The resource's state does not allow it, or the Idempotency-Key came with another request."
        statuses["413"] = "The body is too large."
        if not path.startswith(BYTES):
            operation.setdefault("parameters", []).extend([IDEMPOTENCY_KEY, REASON])
    if method == "patch" or (method, path) in CONDITIONAL:
        operation["parameters"].append(IF_MATCH)
        statuses["412"] = "If-Match names another ETag than the current one."
    if (method, path) == DEPLOY:
        operation["parameters"].append(IF_NONE_MATCH)
    if method == "get" and path.endswith(("}", "}/traffic")):
        tag = {"description": "What If-Match names.", "schema": {"type": "string"}}
        operation["responses"]["200"].setdefault("headers", {})["ETag"] = tag
    if path.endswith(("/versions", "/validate", "/reference", "/optimize")) and method == "post":
        statuses["422"] = "The artifact does not load, crashes, or is a pickle that nobody trusted."
    if path.startswith("/api/v1/uploads") and method == "post":
        statuses["429"] = "The tenant has too many uploads in progress."
    if path.startswith(BYTES) and method != "get":
        statuses["503"] = "The artifact store or this machine's disk does not take it now."
    if path.startswith(BYTES) and method == "put":
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": content}
    responses = operation["responses"]
    responses.pop("400", None)
    for status, description in statuses.items():
        responses[status] = {"description": description}
        if method != "head":
            responses[status]["content"] = PROBLEM
