"""Scikit-learn models: `.skops`, and pickles (pickle, joblib, cloudpickle) of whoever is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from headrace.core.errors import InvalidInput, Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.registry import pickles
from headrace.server.engines.artifact import kind_of
from headrace.server.engines.port import Array, example
from headrace.server.engines.tensors import check, conform, settle, spec_of, to_text

TRUST_HINT = "push it with --trust if you trust whoever made it"


class SklearnEngine:
    """A fitted estimator or pipeline.

    A classifier gives `label` and, where it can, `probabilities`; another model with `predict` gives `prediction`; one
    that only transforms `transformed`.
    """

    signature: Signature

    def __init__(self, path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> None:
        # For the whole process, which has one engine: BLAS and OpenMP would take every core for each run.
        self._limits = threadpool_limits(threads)
        self._model = model = _read(path, options.trust)
        _limit_jobs(model, threads)
        methods = _methods(model)
        source = _input(model, signature)
        self._text = source.datatype == "BYTES"
        self._methods = methods
        first = example(Signature((source,), ()))
        if self._text:
            first[0] = to_text(first[0], source.name)
        outputs = tuple(spec_of(name, _dense(method(first[0]))) for name, method in methods.items())
        self.signature = settle(Signature((source,), outputs), signature, options.outputs)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        rows = to_text(inputs[0], self.signature.inputs[0].name) if self._text else inputs[0]
        return [conform(_dense(self._methods[spec.name](rows)), spec) for spec in self.signature.outputs]

    def close(self) -> None:
        """See `Engine.close`."""
        self._limits.restore_original_limits()
        del self._model, self._methods


def _read(path: Path, trust: bool) -> Any:
    kind = kind_of(path)
    if kind == "zip":
        import skops.io  # imports all of scikit-learn, 35 MB that a pickle need not pay

        unknown = skops.io.get_untrusted_types(file=path)
        if unknown and not trust:
            listed = ", ".join(sorted(unknown)[:10])
            raise Unprocessable(
                f"the artifact holds types that are not known to be safe: {listed}",
                field="options.trust",
                hint=TRUST_HINT,
            )
        return skops.io.load(path, trusted=unknown)
    if kind in ("pickle", "compressed"):
        if not trust:
            raise pickles.refusal(
                path, "the artifact", "options.trust", "save it with skops.io.dump(model, 'model.skops')"
            )
        return joblib.load(path)
    raise Unprocessable("this is neither a .skops file nor a pickle", field="digest")


def _limit_jobs(model: Any, threads: int) -> None:
    """Set `n_jobs` of the model and of its steps: one saved with -1 takes every core, and on few rows is slower."""
    if isinstance(model, BaseEstimator):
        jobs = [name for name in model.get_params() if name.rpartition("__")[2] == "n_jobs"]
        model.set_params(**dict.fromkeys(jobs, threads))


def _methods(model: Any) -> dict[str, Callable[[Array], Any]]:
    """Output name -> the method that computes it."""
    if is_classifier(model) and hasattr(model, "predict"):
        methods = {"label": model.predict}
        if hasattr(model, "predict_proba"):
            methods["probabilities"] = model.predict_proba
        return methods
    if hasattr(model, "predict"):
        return {"prediction": model.predict}
    if hasattr(model, "transform"):
        return {"transformed": model.transform}
    raise Unprocessable(
        f"{type(model).__name__} has neither predict nor transform", field="digest", hint="push a fitted estimator"
    )


def _input(model: Any, given: Signature | None) -> TensorSpec:
    """The only input: a table of FP64, unless a given signature says otherwise of a model that counts no features."""
    features = getattr(model, "n_features_in_", None)
    if features is not None:
        return TensorSpec("input", "FP64", (-1, int(features)))
    if given is None:
        raise InvalidInput(
            "signature: missing, and the model does not say how many features it takes",
            field="signature",
            hint='give it, e.g. inputs [{"name": "input", "datatype": "BYTES", "shape": [-1]}] for a text model',
        )
    check(given, partly=True)
    if len(given.inputs) != 1 or given.inputs[0].shape[:1] != (-1,):
        raise InvalidInput(
            "signature.inputs: a scikit-learn model takes one input, with a free first dimension",
            field="signature.inputs",
        )
    return given.inputs[0]


def _dense(values: Any) -> Array:
    """A method's result as an array. Raises Unprocessable for a list of arrays (a classifier of several targets)."""
    if isinstance(values, list):
        raise Unprocessable(
            "the model gives a list of arrays, one per target",
            field="digest",
            hint="wrap it in a class for the python engine, which may name each output",
        )
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)
