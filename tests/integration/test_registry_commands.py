"""The registry from the command line, the SDK and the data plane of a real platform."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import httpx
import pytest

from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.errors import Conflict, InvalidInput, NotFound
from headrace.core.golden import Golden, GoldenCase, GoldenTensor
from headrace.core.resources import Lineage
from headrace.router.grpc_api import inference_pb2 as pb
from tests import models
from tests.integration.test_cli import Run, run_with


@pytest.fixture(scope="module")
def run(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = str(tmp_path_factory.mktemp("config"))
    return run_with({"HEADRACE_DATA": str(platform.folder), "XDG_CONFIG_HOME": config})


def golden_file(folder: Path, expected: float) -> str:
    path = folder / f"golden-{expected}.json"
    x = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2]}
    y = {"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [expected]}
    path.write_text(json.dumps({"cases": [{"name": "two", "inputs": [x], "outputs": [y]}], "tolerance": 1e-4}))
    return str(path)


def test_a_versions_life_from_push_to_deletion(run: Run, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.onnx" for n in range(3)]
    for add, file in enumerate(files, 1):
        file.write_bytes(models.echo_onnx(float(add)).content)
    lineage = ("--training-set", "lake://churn@7", "--code", "9f3c2ab", "--feature", "days@2", "--metadata", "run=5")
    pushed = run("models", "push", "life", str(files[0]), *lineage, "--golden", golden_file(tmp_path, 3.0))
    assert "signature tests: 1 of 1 passed" in pushed.stdout
    failed = run(
        "models", "push", "life", str(files[1]), "--parent", "1", "--golden", golden_file(tmp_path, 9.0), code=1
    )
    assert "two: output 'y' at [0, 0]: expected 9.0, got 4.0" in failed.stdout
    assert "signature tests failed: two" in run("deploy", "life@2", code=1).stderr
    assert "life@2 is registered" in run("models", "validate", "life@2", code=1).stdout
    assert "life@2 is validated" in run("models", "validate", "life@2", "--golden", golden_file(tmp_path, 4.0)).stdout
    shown = run("models", "show", "life").stdout
    assert "made from life@1" in shown and "trained on lake://churn@7; code 9f3c2ab; needs days@2; run=5" in shown
    run("deploy", "life@1")
    run("deploy", "life@2")

    done = run("models", "alias", "life", "champion", "1", "--why", "first")
    assert (
        "life@champion is life@1" in done.stdout and "undo: headrace models alias life champion --remove" in done.stdout
    )
    assert run("predict", "life@champion", "--row", "2").stdout.split()[-1] == "[3.0]"
    assert "undo: headrace models alias life champion 1" in run("models", "alias", "life", "champion", "2").stdout
    assert run("predict", "life@champion", "--row", "2").stdout.split()[-1] == "[4.0]"
    assert "life: 1: 90 %, 2: 10 %" in run("traffic", "set", "life", "1=90", "champion=10").stdout
    assert "goes to 1 replicas" in run("scale", "life@champion", "1").stdout
    assert "hint: headrace undeploy life@2" in run("models", "retire", "life@champion", "--yes", code=1).stderr
    run("models", "retire", "life@1", code=2)

    rows = run("models", "diff", "life@1", "2").stdout
    assert "lineage.parent" in rows and "life@1" in rows and "lineage.training_set" in rows
    assert json.loads(run("models", "diff", "life@1", "life@champion", "--json").stdout)["new"] == 2
    run("models", "diff", "life", "2", code=2)
    assert "life" in run("models", "list", "--search", "LAKE://churn 9f3c").stdout
    assert "life" not in run("models", "list", "--search", "lake nothing").stdout
    assert "life@2 is approved" in run("models", "approve", "life@2", "--why", "better").stdout
    assert "model.alias" in run("changes", "life").stdout

    run("models", "push", "life", str(files[2]))
    assert "only a retired version" in run("models", "delete", "life@3", "--yes", code=1).stderr
    assert "life@3 is retired" in run("models", "retire", "life@3", "--yes", "--why", "no use").stdout
    assert "life@3 is deleted" in run("models", "delete", "life@3", "--yes").stdout
    run("traffic", "set", "life", "1=100")
    run("models", "alias", "life", "champion", "--remove")
    assert "no deployed version 'champion'" in run("predict", "life@champion", "--row", "2", code=1).stderr
    run("models", "alias", "life", "champion", code=2)


def test_the_rule_of_approval_and_the_audit(run: Run, tmp_path: Path) -> None:
    assert "optional" in run("tenants", "show", "default").stdout
    created = run("tenants", "create", "careful", "--approval", "four-eyes", "--json").stdout
    assert json.loads(created)["result"]["approval"] == "four-eyes"
    file = models.echo_onnx().named(tmp_path)
    run("models", "push", "m", str(file), "--tenant", "careful")
    refused = run("deploy", "m@1", "--tenant", "careful", code=1)
    assert "wants versions approved" in refused.stderr and "hint: headrace models approve m@1" in refused.stderr
    assert "wants another to approve it" in run("models", "approve", "careful/m@1", code=1).stderr
    assert "tenant careful changed" in run("tenants", "update", "careful", "--approval", "required").stdout
    run("models", "approve", "careful/m@1")
    head = run("audit", "head").stdout.strip()
    assert f"head {head}" in run("audit", "verify", "--anchor", head).stdout
    assert json.loads(run("audit", "verify", "--since", "1h", "--json").stdout)["ok"] is True
    number, _, _ = head.partition(":")
    broken = run("audit", "verify", "--anchor", f"{number}:{'0' * 64}", code=1)
    assert f"change {number} is broken: its hash is not the anchor's" in broken.stdout
    assert "anchor" in run("audit", "verify", "--anchor", "x", code=1).stderr


def test_an_alias_in_the_data_plane(client: Client, platform: Platform) -> None:
    first = client.push("named", models.echo_onnx(1.0).content).result.version
    second = client.push("named", models.echo_onnx(2.0).content).result.version
    client.deploy(f"named@{first}")
    client.deploy(f"named@{second}")
    client.models.alias("named", "champion", first)
    x = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    headers = {"authorization": f"Bearer {client.access.api_key}"}

    def ask(url: str) -> httpx.Response:
        return httpx.post(f"{client.access.url}{url}", json={"inputs": [x]}, headers=headers)

    request = pb.ModelInferRequest(model_name="named", model_version="champion")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    tensor.contents.fp32_contents.append(1.0)
    with grpc.insecure_channel(client.status().grpc_url) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        metadata = (("authorization", headers["authorization"]),)
        for version, answer in ((first, 2.0), (second, 3.0)):
            outcome = client.models.alias("named", "champion", version)
            assert outcome.change.effective
            reply = ask("/v2/models/named/versions/champion/infer").json()
            assert (reply["model_version"], reply["outputs"][0]["data"]) == (str(version), [answer])
            assert ask("/v2/models/default%2Fnamed/versions/champion/infer").json()["model_version"] == str(version)
            assert infer(request, metadata=metadata).model_version == str(version)
            assert client.predict("named", [[1.0]], version="champion").version == str(version)
            found = httpx.get(f"{client.access.url}/v2/models/named/versions/champion", headers=headers).json()
            assert found["versions"] == [str(version)]
    client.models.unalias("named", "champion")
    assert ask("/v2/models/named/versions/champion/infer").status_code == 404
    with pytest.raises(NotFound, match="no deployed version 'champion'"):
        client.predict("named@champion", [[1.0]])


def test_the_sdk_says_what_the_command_line_does(client: Client, tmp_path: Path) -> None:
    x, y = (GoldenTensor(name, "FP32", [1, 1], [2.0]) for name in "xy")
    tests = Golden([GoldenCase([x], [y])])
    made = client.models.push(
        "told", models.echo_onnx().content, golden=tests, lineage=Lineage("set", "rev", features=["a@1"])
    ).result
    assert (made.state, made.lineage.code, made.tests[0].faults) == ("validated", "rev", ())
    assert [v.version for v in client.models.versions("told", state="validated").items] == [1]
    assert client.models.show_version("told@1").lineage.features == ["a@1"]
    assert [m.name for m in client.models.list(q="rev a@1")] == ["told"]
    assert client.models.approve("told@1", "good").result.state == "approved"
    with pytest.raises(Conflict, match="only a retired version"):
        client.models.delete("told@1")
    assert client.models.retire("told@1").result.state == "retired"
    assert client.models.delete("told@1").result.version == 1
    assert client.audit.verify().ok and client.audit.head().change > 0
    (tmp_path / "bad.json").write_text('{"cases": [{"inputs": [], "outputs": 5}]}')
    with pytest.raises(InvalidInput, match=r"golden\.cases"):
        client.models.push("told", models.echo_onnx().content, golden=tmp_path / "bad.json")
