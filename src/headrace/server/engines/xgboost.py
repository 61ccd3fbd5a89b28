"""XGBoost models: the JSON and UBJSON that `save_model` writes."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xgboost as xgb
from xgboost.core import _LIB

from headrace.core.errors import Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.server.engines.artifact import head
from headrace.server.engines.port import Array
from headrace.server.engines.tensors import both_classes, check_table, conform, settle, spec_of
from headrace.server.engines.ubjson import check_whole


class XgboostEngine:
    """A booster. Classifiers give `probabilities` of all classes, other models `prediction`."""

    signature: Signature

    def __init__(self, path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> None:
        if head(path)[:1] != b"{":
            raise Unprocessable(
                "this is neither XGBoost's JSON nor its UBJSON",
                field="digest",
                hint="save it with model.save_model('model.ubj'), or push a pickle to the sklearn engine",
            )
        self._booster = booster = xgb.Booster({"nthread": threads, "verbosity": 0})
        content = path.read_bytes()
        if content[1:2] in b"LilUI":  # the length of the first key: UBJSON
            check_whole(content)
        booster.load_model(bytearray(content))  # a buffer's format goes by content, a file's by extension
        booster.set_param({"nthread": threads, "verbosity": 0})
        learner = json.loads(booster.save_config())["learner"]
        objective = learner["objective"]["name"]
        self._linear = learner["learner_train_param"]["booster"] == "gblinear"
        self._binary = objective == "binary:logistic"
        # As the scikit-learn wrapper does: trees after the best round were grown only to find out that it was.
        best = booster.attr("best_iteration")
        self._config = _config(0 if best is None else int(best) + 1)
        features = booster.num_features()
        self._input = TensorSpec("input", "FP32", (-1, features))
        once = self._predict(np.ones((1, features), np.float32))
        name = "probabilities" if self._binary or objective == "multi:softprob" else "prediction"
        own = Signature((self._input,), (spec_of(name, once),))
        self.signature = settle(own, signature, options.outputs)
        self._output = self.signature.outputs[0]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        # The library refuses an address that is no multiple of four, where a request's bytes may well begin.
        return [conform(self._predict(np.require(inputs[0], requirements="A")), self._output)]

    def _predict(self, rows: Array) -> Array:
        if self._linear:  # has no in-place prediction
            values: Array = self._booster.predict(xgb.DMatrix(rows), validate_features=False)
        else:
            values = self._predict_dense(rows)
        return both_classes(values) if self._binary else values

    def _predict_dense(self, rows: Array) -> Array:
        """`Booster.inplace_predict` without its search for the kind of its argument: 56 us a call for 120.

        By the documented C function, ``XGBoosterPredictFromDense``.
        """
        check_table(rows, self._input)
        table = b'{"data":[%d,true],"shape":[%d,%d],"typestr":"<f4","version":3}'
        table %= (rows.ctypes.data, *rows.shape)
        shape, axes, values = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64(), ctypes.c_void_p()
        failed = _LIB.XGBoosterPredictFromDense(
            self._booster.handle,
            table,
            self._config,
            None,
            ctypes.byref(shape),
            ctypes.byref(axes),
            ctypes.byref(values),
        )
        if failed:
            raise RuntimeError(_LIB.XGBGetLastError().decode())
        sizes = shape[: axes.value]
        # Copied: the library's buffer is the next call's too.
        return np.frombuffer(ctypes.string_at(values.value or 0, 4 * math.prod(sizes)), np.float32).reshape(sizes)

    def close(self) -> None:
        """See `Engine.close`."""
        del self._booster


def _config(trees_end: int) -> bytes:
    """The C function's settings. `trees_end`: boosting rounds to use, 0 for all."""
    config = {
        "type": 0,  # the value, by the objective's transformation
        "training": False,
        "iteration_begin": 0,
        "iteration_end": trees_end,
        "missing": math.nan,
        "strict_shape": False,
        "cache_id": 0,
    }
    return json.dumps(config).encode()
