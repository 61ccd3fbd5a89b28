"""LightGBM boosters saved as text."""

from __future__ import annotations

from pathlib import Path

import lightgbm
import numpy as np

from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions
from headrace.server.engines.port import Array
from headrace.server.engines.tables import TableEngine, two_columns


def load(path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> TableEngine:
    """Load a booster; see `engines.load.load`. Classifiers give ``probabilities``, others ``prediction``."""
    text = path.read_text(errors="strict")
    booster = lightgbm.Booster(model_str=text)
    objective = next((line[10:] for line in text.splitlines() if line.startswith("objective=")), "")
    width = booster.num_feature()

    def predict(table: Array) -> Array:
        return np.asarray(booster.predict(table, num_threads=threads))

    name, function = "prediction", predict
    if objective.startswith("binary"):
        name, function = "probabilities", lambda table: two_columns(predict(table))
    elif objective.startswith("multiclass"):
        name = "probabilities"
    return TableEngine(width, "FP64", {name: (function, function(np.ones((1, width))))}, options)
