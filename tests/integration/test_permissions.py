"""Who may do what: every operation of the API that changes anything, by every role; and none but those listed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace.core.resources import ROLES, Role
from tests import models
from tests.integration.control import Control, control

DIGEST = "0" * 64
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
GOLDEN = {"cases": [{"inputs": [TENSOR], "outputs": [{**TENSOR, "name": "y"}]}]}
LEAST: dict[tuple[str, str], tuple[Role, Any]] = {
    ("put", "/api/v1/artifacts/{digest}"): ("developer", None),
    ("post", "/api/v1/uploads"): ("developer", {"digest": DIGEST, "size_bytes": 1 << 60}),
    ("put", "/api/v1/uploads/{id_}"): ("developer", None),
    ("post", "/api/v1/uploads/{id_}/commit"): ("developer", None),
    ("delete", "/api/v1/uploads/{id_}"): ("developer", None),
    ("post", "/api/v1/artifacts/gc"): ("admin", {"dry_run": True, "grace_s": -1}),
    ("post", "/api/v1/models/{model}/versions"): ("developer", {"digest": DIGEST, "file_name": "a.onnx"}),
    ("post", "/api/v1/models/{model}/versions/{number}/validate"): ("developer", {"golden": GOLDEN}),
    ("post", "/api/v1/models/{model}/versions/{number}/reference"): ("developer", {"reference": {"digest": DIGEST}}),
    ("post", "/api/v1/models/{model}/versions/{number}/optimize"): ("developer", {"data": {"digest": DIGEST}}),
    ("post", "/api/v1/jobs/{id_}/cancel"): ("developer", None),
    ("patch", "/api/v1/models/{model}"): ("developer", {"description": "x"}),
    ("post", "/api/v1/models/{model}/versions/{number}/approve"): ("operator", None),
    ("post", "/api/v1/models/{model}/versions/{number}/retire"): ("operator", None),
    ("delete", "/api/v1/models/{model}/versions/{number}"): ("operator", None),
    ("put", "/api/v1/models/{model}/aliases/{alias}"): ("operator", {"version": 1}),
    ("delete", "/api/v1/models/{model}/aliases/{alias}"): ("operator", None),
    ("put", "/api/v1/models/{model}/grants/{to}"): ("operator", None),
    ("delete", "/api/v1/models/{model}/grants/{to}"): ("operator", None),
    ("post", "/api/v1/deployments"): ("operator", {"model": "absent"}),
    ("patch", "/api/v1/deployments/{reference}"): ("operator", {"replicas": 1}),
    ("delete", "/api/v1/deployments/{reference}"): ("operator", None),
    ("delete", "/api/v1/quarantine/{reference}"): ("operator", None),
    ("put", "/api/v1/models/{model}/traffic"): ("operator", {"weights": {"1": 100}}),
    ("post", "/api/v1/models/{model}/rollback"): ("operator", None),
    ("put", "/api/v1/models/{model}/traffic/overrides/{pinned}"): ("operator", {"version": 1}),
    ("delete", "/api/v1/models/{model}/traffic/overrides/{pinned}"): ("operator", None),
    ("post", "/api/v1/tenants"): ("admin", {"name": "default"}),
    ("patch", "/api/v1/tenants/{name}"): ("admin", {}),
    ("post", "/api/v1/keys"): ("admin", {"role": "viewer", "tenant": "absent"}),
    ("post", "/api/v1/keys/{id_}/rotate"): ("admin", {}),
    ("delete", "/api/v1/keys/{id_}"): ("admin", None),
}
"""Operation -> the least role that may do it, and a body that says enough."""
VALUES = {"digest": DIGEST, "reference": "absent@1", "number": "1", "alias": "champion"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    with control(tmp_path_factory.mktemp("permissions")) as one:
        yield one


@pytest.fixture(scope="module")
def keys(served: Control) -> dict[str, str]:
    return {role: served.key_of(role) for role in ROLES}


def test_the_table_has_every_operation_that_changes_anything_and_no_other(served: Control) -> None:
    document = served.do("GET", "/openapi.json", key=None)
    found = {(m, path) for path, of in document["paths"].items() for m in of if m not in ("get", "head", "options")}
    assert found == set(LEAST)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("method", "path"), LEAST)
def test_an_operation_by_a_role(served: Control, keys: dict[str, str], method: str, path: str, role: Role) -> None:
    least, body = LEAST[method, path]
    concrete = path.removeprefix("/api/v1")
    for name in ("model", "to", "pinned", "name", "id_", *VALUES):
        concrete = concrete.replace(f"{{{name}}}", VALUES.get(name, "absent"))
    concrete += "?offset=0" if (method, path) == ("put", "/api/v1/uploads/{id_}") else ""
    before = served.do("GET", "/audit/head")
    part = (method, path) == ("put", "/api/v1/uploads/{id_}")
    headers = {"content-range": "bytes 0-0/1"} if part else {}
    response = served.call(method.upper(), concrete, body, key=keys[role], headers=headers)
    if ROLES.index(role) < ROLES.index(least):
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert f"this needs the role {least}" in response.json()["detail"]
    else:  # allowed, and refused for what it is about: nothing of it exists
        assert response.status_code in (400, 404, 409, 413), response.text
    assert served.do("GET", "/audit/head") == before


@pytest.mark.parametrize("role", ROLES)
def test_nobody_but_an_admin_reaches_another_tenant(served: Control, keys: dict[str, str], role: Role) -> None:
    if served.call("GET", "/tenants/other").status_code == 404:
        served.do("POST", "/tenants", {"name": "other"})
    digest = served.put(models.echo_onnx().content)
    for (method, path), (_, body) in LEAST.items():
        if "{model}" not in path and "{reference}" not in path:
            continue
        concrete = path.removeprefix("/api/v1")
        for name in ("model", "to", "pinned", *VALUES):
            concrete = concrete.replace(f"{{{name}}}", VALUES.get(name, "absent"))
        if path.endswith("/versions"):  # one that is there: that is looked at first
            body = {"digest": digest, "file_name": "a.onnx"}
        status = served.call(method.upper(), f"{concrete}?tenant=other", body, key=keys[role]).status_code
        assert (status == 403) == (role != "admin"), (method, path, status)
