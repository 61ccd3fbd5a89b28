"""Reference statistics from files: REST, SDK and command line, with real data; and files that are not of the model."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from headrace.client.client import AsyncClient, Client
from headrace.client.serve import Platform
from headrace.core.errors import Conflict, InvalidInput, NotFound, Unprocessable
from tests import models
from tests.integration.control import Control, control
from tests.integration.test_cli import Run, run_with


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    with control(tmp_path_factory.mktemp("control")) as one:
        yield one


def parquet(columns: Any) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def table() -> dict[str, Any]:
    from sklearn.datasets import load_breast_cancer

    x, y = models.breast_cancer()
    names = [str(name) for name in load_breast_cancer().feature_names]
    return {**{name: x[:, k] for k, name in enumerate(names)}, "malignant": y}


def pushed(api: Control, model: str, artifact: models.Artifact, content: bytes, label: str | None = None) -> Any:
    sample = {"digest": api.put(content), "file_name": "train.parquet", "label": label}
    body = {"digest": api.put(artifact.content), "file_name": artifact.file_name, "engine": artifact.engine}
    return api.call("POST", f"/models/{model}/versions", {**body, "signature": artifact.signature, "reference": sample})


def test_a_pushed_sample_is_described_with_the_models_answers(api: Control) -> None:
    x, _ = models.breast_cancer()
    made = pushed(api, "cancer", models.classifier_onnx(), parquet(table()), "malignant")
    assert made.status_code == 201, made.text
    assert made.json()["result"]["reference"]["features"] == 30 + 3
    found = api.do("GET", "/models/cancer/versions/1/reference")["statistics"]
    assert (found["rows"], found["predicted"]) == (569, 569)
    first = found["inputs"][0]
    assert (first["name"], first["tensor"], first["column"]) == ("mean radius", "x", 0)
    assert first["mean"] == pytest.approx(float(x[:, 0].astype(np.float64).mean())) and sum(first["counts"]) == 569
    label, _, positive = found["outputs"]
    answers = models.xgboost_classifier().predict_proba(x)[:, 1]
    assert label["edges"] == [0, 1] and label["counts"] == np.bincount(answers > 0.5).tolist()
    assert positive["mean"] == pytest.approx(float(answers.mean()), abs=1e-5)

    again = pushed(api, "cancer", models.classifier_onnx(), parquet(table()), "malignant").json()
    assert again["result"]["version"] == 1
    shifted = {name: values * 2 if name == "mean radius" else values for name, values in table().items()}
    other = pushed(api, "cancer", models.classifier_onnx(), parquet(shifted), "malignant").json()
    assert other["result"]["version"] == 2, "other statistics are another version"
    rows = {d["field"]: d for d in api.do("GET", "/models/cancer/diff?old=1&new=2")["differences"]}
    assert rows["reference.inputs.mean radius.mean"]["change"] == pytest.approx(first["mean"])
    assert "reference.inputs.mean texture.mean" not in rows and "digest" not in rows


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "mean radius"}, "29 columns, expected 30 for input 'x'"),
        (lambda t: {**t, "id": t["mean radius"]}, "31 columns, expected 30"),
        (lambda t: {**t, "mean radius": ["big"] * 569}, "column 'mean radius', row 1: 'big' is no FP32"),
        (lambda t: {name: values[:0] for name, values in t.items()}, "no rows"),
    ],
)
def test_a_sample_that_is_not_of_the_model_is_refused_by_name(api: Control, columns: Any, says: str) -> None:
    answer = pushed(api, "refused", models.classifier_onnx(), parquet(columns(table())), "malignant")
    assert answer.status_code == 422 and says in answer.json()["detail"], answer.text
    assert answer.json()["field"] == "reference"
    assert api.call("GET", "/models/refused").status_code == 404


def test_what_is_no_sample_is_refused(api: Control) -> None:
    artifact = models.classifier_onnx()
    for content, label, says in (
        (b"PAR1 and then nothing", None, "neither Parquet, CSV nor NPZ"),
        (artifact.content, None, "neither Parquet, CSV nor NPZ"),
        (parquet(table()), "benign", "no column 'benign' for the label"),
    ):
        answer = pushed(api, "refused", artifact, content, label)
        assert answer.status_code == 422 and says in answer.json()["detail"], answer.text
        assert str(api.folder) not in answer.text
    body = {"digest": api.put(artifact.content), "file_name": "m.onnx", "reference": {"digest": "0" * 64}}
    problem = api.refused("POST", "/models/refused/versions", body)
    assert (problem.status, problem.field) == (404, "reference.digest")
    body["reference"] = {"digest": "x"}
    assert api.refused("POST", "/models/refused/versions", body).field == "reference.digest"


def test_what_is_missing_is_counted_and_not_predicted(api: Control) -> None:
    columns = table()
    del columns["malignant"]
    radius = columns["mean radius"].tolist()
    radius[0], radius[1] = None, float("nan")
    made = pushed(api, "gaps", models.classifier_onnx(), parquet({**columns, "mean radius": radius}))
    assert made.status_code == 201, made.text
    found = api.do("GET", "/models/gaps/versions/1/reference")["statistics"]
    assert (found["inputs"][0]["missing"], found["inputs"][0]["count"], found["predicted"]) == (2, 567, 567)


def test_text_and_several_inputs_are_mapped_by_name(api: Control) -> None:
    artifact = models.several_onnx()
    names = [spec["name"] for spec in api.push("mixed", artifact)["result"]["signature"]["inputs"]]
    assert len(names) > 1
    body = {"reference": {"digest": api.put(b"nothing,of,it\n1,2,3\n")}}
    problem = api.refused("POST", "/models/mixed/versions/1/reference", body)
    assert problem.status == 422 and all(repr(name) in problem.detail for name in (*names, "nothing", "it"))


@pytest.fixture(scope="module")
def run(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = str(tmp_path_factory.mktemp("config"))
    return run_with({"HEADRACE_DATA": str(platform.folder), "XDG_CONFIG_HOME": config})


def test_the_command_line_shows_and_attaches_once(run: Run, client: Client, tmp_path: Path) -> None:
    file = models.classifier_onnx().named(tmp_path)
    csv, npz = tmp_path / "train.csv", tmp_path / "train.npz"
    pd.DataFrame(table()).to_csv(csv, index=False)
    np.savez(npz, x=models.breast_cancer()[0])
    said = run("models", "push", "drift", str(file), "--reference", str(csv), "--label", "malignant").stdout
    assert "reference train.csv: 569 rows, 33 features" in said
    assert "1: reference train.csv: 569 rows, 33 features" in run("models", "show", "drift").stdout
    lines = run("models", "reference", "drift@1").stdout.splitlines()
    assert lines[0] == "drift@1: train.csv, 569 rows; the model answered 569 of them"
    assert "mean radius" in lines[2] and lines[2].split()[-1] == "32"

    client.push("late", models.classifier_onnx(2).content)
    assert "has no reference statistics" in run("models", "reference", "late@1", code=1).stderr
    assert "569 rows" in run("models", "reference", "late@1", "--data", str(npz)).stdout
    run("models", "reference", "late@1", "--data", str(npz))
    refused = run("models", "reference", "late@1", "--data", str(csv), "--label", "malignant", code=1).stderr
    assert "late@1 has reference statistics, of train.npz" in refused and "hint" in refused
    assert json.loads(run("models", "reference", "late@1", "--json").stdout)["statistics"]["rows"] == 569
    assert len([c for c in client.changes("late").items if c.action == "version.reference"]) == 1


def test_the_sdk_does_both_ways(platform: Platform, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet({"x": [1.0, 2.0, 3.0]}))
    made = client.push("sdk-reference", models.echo_onnx(5.0).content, reference=path).result
    assert made.reference is not None and made.reference.rows == 3
    assert client.models.reference("sdk-reference@1").statistics.outputs[0].minimum == 6.0
    with pytest.raises(InvalidInput, match="is no file"):
        client.push("sdk-reference", models.echo_onnx(5.0).content, reference=tmp_path / "none.csv")

    async def go() -> None:
        async with AsyncClient(client.access.url, client.access.api_key, client.access.control_url) as other:
            await other.push("sdk-reference", models.echo_onnx(6.0).content)
            with pytest.raises(NotFound):
                await other.models.reference("sdk-reference@2")
            outcome = await other.models.attach_reference("sdk-reference@2", path)
            assert outcome.result.reference is not None
            with pytest.raises(Conflict):
                await other.models.attach_reference("sdk-reference@1", path, "y")
            with pytest.raises(Unprocessable):
                await other.push("sdk-reference", models.echo_onnx(7.0).content, reference=path, label="nope")

    asyncio.run(go())
