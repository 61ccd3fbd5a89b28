"""Schemathesis against both APIs of a real platform: examples, edge cases and generated requests, good and bad. Every
answer must be one that the document tells, wrong requests must be refused, and none may be our fault.

Every run asks the same; another HEADRACE_SCHEMATHESIS_SEED asks something else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.client import calls
from headrace.client.serve import Platform
from tests import models
from tests.conformance.clients import fetched

SEED = os.environ.get("HEADRACE_SCHEMATHESIS_SEED", "20261124")
LIMIT_S = 280
"""Either run takes ten seconds on an idle machine."""
pytestmark = pytest.mark.timeout(LIMIT_S + 60)
CONTROL = """
# Any ETag is valid and nearly none is the current one.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 412]

# A cursor is opaque: the document cannot say which are ours.
[[operations]]
include-method = "GET"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404]

# What JSON Schema cannot say of a body: that bytes have a digest, that numbers add up, that a name tells an engine,
# that a shared deployment has one thread and no more memory than what it shares.
[[operations]]
include-name = [
    "PUT /api/v1/artifacts/{digest}",
    "PUT /api/v1/uploads/{id_}",
    "PUT /api/v1/models/{model}/traffic",
    "POST /api/v1/deployments",
    "POST /api/v1/models/{model}/versions",
    "POST /api/v1/models/{model}/versions/{number}/validate",
    "POST /api/v1/models/{model}/versions/{number}/reference",
    "POST /api/v1/models/{model}/versions/{number}/optimize",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409, 412, 422]

# How large an artifact may be, and how many uploads may be in progress, are settings.
[[operations]]
include-name = "POST /api/v1/uploads"
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 413, 429]
"""
DATA = """
[parameters]
"path.model_name" = "churn"
"path.model_version" = "1"
"""
BEYOND_THE_DOCUMENT = (
    "positive_data_acceptance",  # it does not tell which tensors a model takes
    "status_code_conformance",  # it lists few of the statuses that the protocol's text allows
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform of its own: generated requests may do anything to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_REPLICAS_MAX", "6")  # of what is asked for at random it shall not start hundreds
        started = Platform(str(tmp_path_factory.mktemp("schemathesis")))
    client = started.client
    client.call(calls.create_tenant("risk"))
    client.push("churn", models.echo_onnx().content)
    client.deploy("churn@1", traffic=100)
    yield started
    started.stop()


def run(config: str, document: str, base: str, platform: Platform, folder: Path, *more: str) -> None:
    (folder / "schemathesis.toml").write_text(config)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", document]
    options = ["--url", base, "--header", f"Authorization: Bearer {platform.client.access.api_key}", "--checks", "all"]
    bounds = [*more, "--seed", SEED, "--request-timeout", "20", "--no-color"]
    done = subprocess.run([*command, *options, *bounds], cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout}\n{done.stderr}"


def test_the_control_plane_is_as_its_document_says(served: Platform, tmp_path: Path) -> None:
    base = served.client.access.control_url
    # A deployment is there until it has drained, a key for ever, as revoked.
    here = ["--max-examples", "6", "--exclude-checks", "use_after_free"]
    run(CONTROL, f"{base}/openapi.json", base, served, tmp_path, *here)
    assert served.client.status().models


def oip_document(folder: Path) -> dict[str, Any]:
    """The Open Inference Protocol's OpenAPI document as MLServer ships it; its own extensions left out, a type that
    OpenAPI does not know mended, what we take beyond it told, and an example that this test's model takes put in."""
    text = (folder / "mlserver" / "rest" / "openapi" / "dataplane.json").read_text()
    document: dict[str, Any] = json.loads(text.replace('"type": "bytes"', '"type": "string"'))
    assert document["info"]["title"] == "Data Plane"
    document["paths"] = {
        path: what for path, what in document["paths"].items() if not path.endswith(("_stream", "generate"))
    }
    # Parameters are anyone's; and many clients write what they leave out as null.
    document["components"]["schemas"]["Parameters"] = {"type": "object", "nullable": True}
    document["components"]["schemas"]["InferenceRequest"]["properties"]["outputs"]["nullable"] = True
    tensor = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1.5, 2.5]}
    for path, what in document["paths"].items():
        if path.endswith("/infer"):
            what["post"]["requestBody"]["content"]["application/json"]["example"] = {"id": "7", "inputs": [tensor]}
    assert len(document["paths"]) == 9
    return document


def test_the_data_plane_is_as_the_protocols_document_says(served: Platform, tmp_path: Path) -> None:
    (tmp_path / "oip.json").write_text(json.dumps(oip_document(fetched("mlserver"))))
    excluded = ["--phases", "examples,coverage,fuzzing", "--exclude-checks", ",".join(BEYOND_THE_DOCUMENT)]
    run(DATA, "oip.json", served.client.access.url, served, tmp_path, "--max-examples", "30", *excluded)
    assert served.client.predict("churn", [[2.0]]).array.tolist() == [[2.0]]
