"""What MLflow itself writes, imported and served: `tests.sources` is still true, and a python_function runs.

Skipped by name without MLflow: ``pip install 'headrace[mlflow]'``. MLflow runs in a process of its own, which writes
the models and what they answer.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.client.client import Client
from headrace.core.errors import Unprocessable

if importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("pandas") is None:
    pytest.skip("SKIPPED tests of MLflow's own models: mlflow-skinny is not installed", allow_module_level=True)

WRITER = """
import json, sys
from pathlib import Path

import lightgbm, mlflow.lightgbm, mlflow.onnx, mlflow.pyfunc, mlflow.sklearn, mlflow.xgboost
import numpy as np, pandas, xgboost
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression
from tests import models, sources

out = Path(sys.argv[1])
x, y = models.breast_cancer()
table = pandas.DataFrame(x[:, :4].astype(float), columns=["a b", "b", "c", "d"])
head = table.head(10)
logistic = LogisticRegression(max_iter=5000).fit(table, y)
mlflow.sklearn.save_model(
    logistic, out / "skops", signature=infer_signature(table, logistic.predict(table)), serialization_format="skops")
mlflow.sklearn.save_model(
    logistic, out / "pickle", signature=infer_signature(table, logistic.predict(table)),
    serialization_format="cloudpickle")
boosted = xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(table, y)
mlflow.xgboost.save_model(boosted, out / "xgboost", signature=infer_signature(table, boosted.predict(table)))
light = lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(table.to_numpy(), y), 5)
mlflow.lightgbm.save_model(light, out / "lightgbm", signature=infer_signature(table, light.predict(table)))
mlflow.onnx.save_model(sources.network(branches=False), out / "onnx", save_as_external_data=True)


class Greeter(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["name"].str.len() + model_input["extra"]


frame = pandas.DataFrame({"name": ["ann", "bo"], "extra": [1.5, 2.5]})
mlflow.pyfunc.save_model(
    out / "pyfunc", python_model=Greeter(), signature=infer_signature(frame, np.array([1.0]), params={"t": 1.0}))
(out / "answers.json").write_text(json.dumps({
    "rows": head.to_numpy().tolist(),
    "skops": logistic.predict(head).tolist(),
    "xgboost": boosted.predict_proba(head).tolist(),
    "lightgbm": light.predict(head).tolist(),
    "pyfunc": mlflow.pyfunc.load_model(str(out / "pyfunc")).predict(frame).tolist(),
}))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with MLflow's models."""
    out = tmp_path_factory.mktemp("mlflow")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRITER, out], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return out


def served(client: Client, source: Path, rows: Any, trust: bool = False) -> dict[str, Any]:
    """What a replica answers."""
    name = f"mlflow-itself-{source.name}"
    (imported,) = client.models.import_(source, name=name, trust=trust).imported
    client.deploy(f"{name}@{imported.version.version}", traffic=100)
    answer = client.predict(name, rows).outputs
    client.undeploy(f"{name}@{imported.version.version}", force=True)
    return answer


def test_mlflows_own_models(client: Client, written):
    want = json.loads((written / "answers.json").read_text())
    rows = np.array(want["rows"])
    np.testing.assert_array_equal(served(client, written / "skops", rows)["label"], want["skops"])
    with pytest.raises(Unprocessable, match="is a pickle"):
        served(client, written / "pickle", rows)
    np.testing.assert_array_equal(served(client, written / "pickle", rows, trust=True)["label"], want["skops"])
    # Four digits as JSON has them are FP64 on the way; the engine takes FP32.
    boosted = served(client, written / "xgboost", rows.astype(np.float32))
    np.testing.assert_allclose(boosted["probabilities"], want["xgboost"], rtol=1e-5)
    np.testing.assert_allclose(served(client, written / "lightgbm", rows)["probabilities"][:, 1], want["lightgbm"])
    x = np.ones((2, 64), np.float32)
    assert served(client, written / "onnx", x)["y"].shape == (2, 8)


def test_a_python_function(client: Client, written):
    want = json.loads((written / "answers.json").read_text())["pyfunc"]
    rows = {"name": np.array([b"ann", b"bo"], object), "extra": np.array([1.5, 2.5])}
    with pytest.raises(Unprocessable, match=r"python_model\.pkl") as caught:
        served(client, written / "pyfunc", rows)
    assert caught.value.field == "trust"
    answer = served(client, written / "pyfunc", rows, trust=True)
    np.testing.assert_array_equal(answer["output"], want)
