"""Models of other tools, imported into a real platform: what a replica answers is what the library itself answers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.client.client import AsyncClient, Client
from headrace.core.errors import Forbidden, HeadraceError, InvalidInput, Unprocessable
from headrace.core.signature import Signature, TensorSpec
from headrace.registry.importers import onnx
from headrace.registry.importers.candidate import Asked
from tests import models, sources


def rows() -> Any:
    return models.breast_cancer()[0][:20]


X = np.random.default_rng(5).standard_normal((20, 64)).astype(np.float32)


def onnx_answer(x: Any) -> Any:
    return sources.answer(sources.network().SerializeToString(), x=x)[0]


# what -> (source, rows, output, what the library says)
SERVED: dict[str, tuple[Callable[[Path], Path], Callable[[], Any], str, Callable[[Any], Any]]] = {
    "mlflow-sklearn": (
        sources.mlflow_sklearn,
        rows,
        "label",
        lambda x: models.sklearn_classifier().predict(x.astype(np.float64)),
    ),
    "mlflow-xgboost": (
        sources.mlflow_xgboost,
        rows,
        "probabilities",
        lambda x: models.xgboost_classifier().predict_proba(x),
    ),
    "mlflow-lightgbm": (
        sources.mlflow_lightgbm,
        rows,
        "probabilities",
        lambda x: np.stack([1 - (p := models.lightgbm_classifier().predict(x)), p], axis=1),
    ),
    "mlflow-onnx": (sources.mlflow_onnx, lambda: X, "y", onnx_answer),
    "onnx-external": (
        lambda folder: sources.save_external(sources.network(), folder / "net.onnx", one_file=False),
        lambda: X,
        "y",
        onnx_answer,
    ),
    "hub-onnx": (
        lambda folder: (
            sources.save_external(
                sources.network(), sources.hub_folder(folder, {"model_type": "mlp"}) / "onnx" / "model.onnx"
            ).parent.parent
        ),
        lambda: X,
        "y",
        onnx_answer,
    ),
}


@pytest.mark.parametrize("what", SERVED)
def test_a_replica_answers_as_the_library(what, client: Client, tmp_path):
    make, given, output, expected = SERVED[what]
    source = make(tmp_path / "source")
    result = client.models.import_(source, name=what, tags={"why": "test"})
    (imported,) = result.imported
    assert imported.created
    assert imported.version.tags["why"] == "test"
    assert not imported.version.options.trust
    client.deploy(f"{what}@{imported.version.version}", traffic=100)
    x = given()
    np.testing.assert_allclose(client.predict(what, x)[output], expected(x), rtol=1e-5)
    again = client.models.import_(source, name=what, tags={"why": "test"})
    assert (again.imported[0].created, again.imported[0].version.version) == (False, 1)
    client.undeploy(f"{what}@1", force=True)


def test_triton_repository(client: Client, tmp_path):
    """Several models and versions at once; what cannot be served is refused, and its neighbours are there."""
    source = sources.triton_repository(tmp_path / "repository")
    result = client.models.import_(source)
    assert result.format == "triton"
    made = [(i.version.model, i.version.version, i.version.tags["triton.version"]) for i in result.imported]
    assert made == [("fraud", 1, "3"), ("fraud", 2, "10"), ("plain", 1, "1")]
    assert [item.model for item in result.refused] == ["steps"]
    first, second, _ = (item.version for item in result.imported)
    assert first.signature.outputs == (TensorSpec("probabilities", "FP32", (-1, 2)),)
    assert first.options.batch_max == 8
    for version in (first, second):
        client.deploy(f"fraud@{version.version}", traffic=100)
        want = models.xgboost_classifier(version.version).predict_proba(rows())
        np.testing.assert_allclose(
            client.predict("fraud", rows(), version=version.version)["probabilities"], want, atol=1e-5
        )
        client.undeploy(f"fraud@{version.version}", force=True)
    again = client.models.import_(source)
    assert [item.created for item in again.imported] == [False] * 3
    assert [item.version.version for item in again.imported] == [1, 2, 1]
    with pytest.raises(InvalidInput, match="for 3 models") as caught:
        client.models.import_(source, name="one")
    assert caught.value.field == "name"
    with pytest.raises(Unprocessable, match="triton_python_backend_utils"):
        client.models.import_(source / "steps")


def test_a_model_too_large_for_one_file(client: Client, tmp_path):
    """As the importer packs one, with a lower bound: a tar of the model and its weights, which the engine unpacks."""
    model = sources.network(branches=False)
    source = sources.save_external(model, tmp_path / "source" / "big.onnx", one_file=False)
    packed = onnx.read(source, Asked(tmp_path), 1000)
    assert packed.path.suffix == ".tar"
    version = client.push("big", packed.path, engine="onnx").result
    client.deploy(f"big@{version.version}", traffic=100)
    want = sources.answer(model.SerializeToString(), x=X)[0]
    np.testing.assert_allclose(client.predict("big", X)["y"], want, rtol=1e-5)
    client.undeploy(f"big@{version.version}", force=True)
    for name, content in {
        "empty": models.tar_of({"readme": b"?"}, "onnx").content,
        "outside": models.tar_of({"model.onnx": external_elsewhere()}, "onnx").content,
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(Unprocessable) as caught:
            client.push(name, tmp_path / f"{name}.tar", engine="onnx")
        assert caught.value.field == "digest"


def external_elsewhere() -> bytes:
    model = sources.network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../../../etc/hostname")
    found: bytes = model.SerializeToString()
    return found


# ------------------------------------------------------------------------------------------------ trust
def test_trust_is_an_operators_and_is_recorded(client: Client, platform, tmp_path):
    source = sources.mlflow_sklearn(tmp_path / "m", pickled=True)
    with pytest.raises(Unprocessable, match="is a pickle") as caught:
        client.models.import_(source, name="trusted")
    assert caught.value.field == "trust"
    key = client.keys.create("developer", label="importer").result
    with Client(client.access.url, key.text, client.access.control_url) as developer:
        with pytest.raises(Forbidden, match="needs the role operator") as denied:
            developer.models.import_(source, name="trusted", trust=True)
        assert denied.value.field == "options.trust"
        safe = sources.mlflow_sklearn(tmp_path / "safe")
        assert developer.models.import_(safe, name="safe").imported[0].created
    with pytest.raises(HeadraceError, match="trusted"):
        client.models.show("trusted")  # nothing was registered on the way
    version = client.models.import_(source, name="trusted", trust=True).imported[0].version
    assert version.options.trust
    change = next(c for c in client.changes("trusted").items if c.action == "version.register")
    want = {"digest": version.digest, "engine": "sklearn", "state": "validated", "trust": True}
    assert change.after == want
    client.deploy("trusted@1", traffic=100)
    labels = models.sklearn_classifier().predict(rows().astype(np.float64))
    np.testing.assert_array_equal(client.predict("trusted", rows())["label"], labels)
    client.undeploy("trusted@1", force=True)


def test_a_pickle_past_the_client_is_refused_with_the_reason(client: Client, tmp_path):
    """The platform scans too: not every caller is our client."""
    marker = tmp_path / "ran"
    path = models.hostile_pickle(marker).named(tmp_path)
    with pytest.raises(Unprocessable, match=r"posix\.mkdir, which can run any code") as caught:
        client.push("hostile", path)
    assert caught.value.field == "options.trust"
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------ refusals
def test_a_wrong_signature_is_refused_by_the_platform(client: Client, tmp_path):
    table = {**sources.TABLE, "inputs": sources.columns_of({"a": "double", "b": "double"})}
    source = sources.mlflow_sklearn(tmp_path / "m", signature=table)
    with pytest.raises(HeadraceError, match=r"\[-1, 2\], the model's 'input' is \[-1, 30\]") as caught:
        client.models.import_(source)
    assert caught.value.field == "signature.inputs[0].shape"
    source = sources.mlflow_onnx(tmp_path / "o")
    wrong = Signature((TensorSpec("x", "FP64", (-1, 64)),), ())
    with pytest.raises(HeadraceError) as caught:
        client.models.import_(source, signature=wrong)
    assert caught.value.field == "signature.inputs[0].datatype"


def test_a_truncated_model_is_refused_by_the_platform(client: Client, tmp_path):
    source = sources.mlflow_lightgbm(tmp_path / "m")
    content = (source / "model.lgb").read_bytes()
    (source / "model.lgb").write_bytes(content[: len(content) // 2])
    with pytest.raises(Unprocessable, match="cut short"):
        client.models.import_(source, name="truncated")


@pytest.mark.skipif(find_spec("torch") is not None, reason="SKIPPED: PyTorch is installed")
def test_without_pytorch(client: Client, tmp_path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
    with pytest.raises(Unprocessable, match="needs PyTorch") as caught:
        client.models.import_(path)
    assert caught.value.field == "engine"
    assert "headrace[torch]" in (caught.value.hint or "")


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="SKIPPED: MLflow is installed")
def test_without_mlflow(client: Client, tmp_path):
    signature = {"inputs": sources.columns_of({"a": "double"}), "outputs": sources.tensor_of("float64", [-1])}
    source = sources.mlmodel(tmp_path / "m", {"python_function": {"loader_module": "mlflow.pyfunc.model"}}, signature)
    with pytest.raises(Unprocessable, match="needs mlflow") as caught:
        client.models.import_(source, trust=True)
    assert caught.value.field == "engine"
    assert "headrace[mlflow]" in (caught.value.hint or "")


# ------------------------------------------------------------------------------------------------ other ways in
@pytest.mark.parametrize("how", ["people", "json"])
def test_command_line(how, client: Client, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_URL", client.access.url)
    monkeypatch.setenv("HEADRACE_CONTROL_URL", client.access.control_url)
    monkeypatch.setenv("HEADRACE_API_KEY", client.access.api_key)
    run = CliRunner().invoke
    source = str(sources.triton_repository(tmp_path / "repository"))
    done = run(app, ["models", "import", source, *(["--json"] if how == "json" else [])])
    assert done.exit_code == 1, done.output  # one of them was refused
    if how == "json":
        assert [item["model"] for item in json.loads(done.stdout)["refused"]] == ["steps"]
        return
    assert "onnx, " in done.stdout
    assert "takes x FP32 [-1, 30]" in done.stdout
    assert "note: dynamic_batching is not taken over" in done.stdout
    assert "refused: steps: steps/1: backend 'python'" in done.stdout
    signature = tmp_path / "signature.json"
    signature.write_text('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [7, 1]}]}')
    path = str(models.echo_onnx(3.0).named(tmp_path))
    done = run(app, ["models", "import", path, "--name", "by-hand", "--signature", str(signature), "--tag", "a=b"])
    assert done.exit_code == 0, done.output
    assert "by-hand@1  onnx" in done.stdout
    assert "takes x FP32 [7, 1]" in done.stdout
    signature.write_text('{"inputs": 1}')
    for arguments, said in (
        ([path, "--signature", str(signature)], "$.inputs"),
        ([path, "--signature", str(tmp_path / "none")], "cannot be read"),
        ([str(tmp_path / "none")], "does not exist"),
        ([path, "--format", "onx"], "expected auto, mlflow"),
        ([path, "--tenant", "default"], "--tenant needs --name"),
    ):
        done = run(app, ["models", "import", *arguments])
        assert done.exit_code == (2 if said.startswith(("expected", "--")) else 1)
        assert said in done.output
        assert "Traceback" not in done.output


def test_asyncio(client: Client, tmp_path):
    import asyncio

    async def go() -> Any:
        access = client.access
        async with AsyncClient(access.url, access.api_key, access.control_url) as other:
            return await other.models.import_(sources.mlflow_xgboost(tmp_path / "m"), name="awaited")

    assert asyncio.run(go()).imported[0].version.engine == "xgboost"


def test_rest_alone(client: Client, tmp_path):
    """What the client does with HTTP is two requests that anybody can send, outputs left to the model."""
    artifact = models.classifier_skops()
    signature = {"inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, 30]}], "outputs": []}
    headers = {"authorization": f"Bearer {client.access.api_key}"}
    import httpx

    with httpx.Client(base_url=client.access.control_url, headers=headers) as http:
        assert http.put(f"/api/v1/artifacts/{artifact.digest}", content=artifact.content).status_code in (200, 201)
        body = {"digest": artifact.digest, "file_name": "m.skops", "signature": signature}
        made = [http.post("/api/v1/models/by-rest/versions", json=body) for _ in range(2)]
        assert [reply.status_code for reply in made] == [201, 201]
        first, second = (reply.json()["result"] for reply in made)
        assert first == second  # the same again is the same version
        assert [item["name"] for item in first["signature"]["outputs"]] == ["label", "probabilities"]
        pickled = {"digest": artifact.digest, "file_name": "m.skops", "options": {"trust": "yes"}}
        assert http.post("/api/v1/models/by-rest/versions", json=pickled).status_code == 400
