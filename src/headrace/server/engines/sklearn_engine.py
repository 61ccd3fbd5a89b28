"""scikit-learn estimators: skops files, and pickles where the operator trusts them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import skops.io

from headrace.core.errors import Unprocessable
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions
from headrace.server.engines.port import Array
from headrace.server.engines.tables import Predict, TableEngine


def load(path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> TableEngine:
    """Load an estimator; see `engines.load.load`.

    Classifiers give ``label`` and ``probabilities``, regressors ``prediction``, transformers ``transformed``.
    """
    model = _read(path, options)
    width = getattr(model, "n_features_in_", None)
    if width is None:
        raise Unprocessable("the estimator is not fitted: it has no n_features_in_", field="artifact")
    functions: dict[str, Predict] = {}
    if hasattr(model, "predict_proba"):
        functions = {"label": model.predict, "probabilities": model.predict_proba}
    elif hasattr(model, "predict"):
        functions = {"label" if hasattr(model, "classes_") else "prediction": model.predict}
    elif hasattr(model, "transform"):
        functions = {"transformed": lambda table: _dense(model.transform(table))}
    else:
        raise Unprocessable("the estimator can neither predict nor transform", field="artifact")
    one = np.ones((1, width))
    return TableEngine(width, "FP64", {name: (f, np.asarray(f(one))) for name, f in functions.items()}, options)


def _read(path: Path, options: EngineOptions) -> Any:
    if zipfile.is_zipfile(path):
        untrusted = skops.io.get_untrusted_types(file=path)
        if untrusted and not options.trust:
            raise Unprocessable(
                f"the skops file holds types that are not trusted: {', '.join(untrusted)}",
                field="options.trust",
                hint="push it with --trust if you know who made it",
            )
        return skops.io.load(path, trusted=untrusted)
    if not options.trust:
        raise Unprocessable(
            "the artifact is no skops file; a pickle runs code when loaded and is refused",
            field="options.trust",
            hint="save it with skops.io.dump, or push it with --trust if you know who made it",
        )
    with path.open("rb") as file:
        return pickle.load(file)


def _dense(result: Any) -> Array:
    return np.asarray(result.toarray() if hasattr(result, "toarray") else result)
