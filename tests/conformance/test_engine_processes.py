"""Every engine in a process of its own: closing frees what loading took, and `threads` is kept to."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import msgspec
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headrace.core.specs import EngineOptions
from tests import models
from tests.conformance.engine_process import Seen
from tests.models import Artifact


def forest_pickle() -> Artifact:
    """A forest that was saved with all cores in mind, as the last step of a pipeline."""
    forest = RandomForestClassifier(20, n_jobs=-1, random_state=1)
    model = make_pipeline(StandardScaler(), forest).fit(*models.breast_cancer())
    return Artifact("sklearn", "forest.pkl", pickle.dumps(model), EngineOptions(trust=True))


ARTIFACTS = {
    "onnx": models.classifier_onnx,
    "xgboost": lambda: models.classifier_xgboost(1, "ubj"),
    "lightgbm": lambda: models.lightgbm_model("binary", 100),
    "sklearn": forest_pickle,
    "python": lambda: models.python_echo(load="self.weights = bytearray(1 << 20)"),
}


@pytest.fixture(scope="module")
def seen(request, tmp_path_factory) -> Seen:
    """What a process saw that did nothing but load, run and close one artifact's engine."""
    artifact = ARTIFACTS[request.param]()
    path = str(artifact.save(tmp_path_factory.mktemp("artifact")))
    options = msgspec.json.encode(artifact.options).decode()
    command = [sys.executable, "-m", "tests.conformance.engine_process", request.param, path, options]
    done = subprocess.run(command, capture_output=True, timeout=90, check=True)
    return msgspec.json.decode(done.stdout, type=Seen)


@pytest.mark.parametrize("seen", ARTIFACTS, indirect=True)
def test_closing_frees(seen):
    assert seen.kept_bytes > 2 << 20  # else the next line could not fail
    assert seen.closed_bytes < seen.kept_bytes / 5


@pytest.mark.parametrize("seen", [name for name in ARTIFACTS if name != "python"], indirect=True)
def test_threads_are_kept_to(seen):
    """A user's own model computes as it likes."""
    assert seen.shared[1] < 0.05
    if (os.cpu_count() or 1) > 1:
        assert seen.shared[2] > 0.25
