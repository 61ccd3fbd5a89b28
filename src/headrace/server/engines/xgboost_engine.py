"""XGBoost boosters saved as JSON or UBJSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xgboost

from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions
from headrace.server.engines.port import Array
from headrace.server.engines.tables import TableEngine, two_columns


def load(path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> TableEngine:
    """Load a booster; see `engines.load.load`. Classifiers give ``probabilities``, others ``prediction``."""
    booster = xgboost.Booster({"nthread": threads})
    booster.load_model(bytearray(path.read_bytes()))
    booster.set_param({"nthread": threads})
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    # A saved classifier may carry `best_iteration`; plain `inplace_predict` then uses the trees up to it, as training.
    predict = booster.inplace_predict
    width = booster.num_features()
    name, function = "prediction", predict
    if objective == "binary:logistic":
        name, function = "probabilities", lambda table: two_columns(predict(table))
    elif objective == "multi:softprob":
        name = "probabilities"
    sample: Array = np.asarray(function(np.ones((1, width), np.float32)))
    return TableEngine(width, "FP32", {name: (function, sample)}, options)
