"""LightGBM models: the text that `save_model` writes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import lightgbm as lgb
import numpy as np
from lightgbm.libpath import _LIB

from headrace.core.errors import Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.server.engines.port import Array
from headrace.server.engines.tensors import both_classes, check_table, conform, settle, spec_of

_FP64, _ROW_MAJOR, _VALUE, _ALL_TREES = 1, 1, 0, -1
"""The library's codes: type of the input, its order, what to predict (by the objective's transformation), with what."""


class LightgbmEngine:
    """A booster. Classifiers give `probabilities` of all classes, other models `prediction`."""

    signature: Signature

    def __init__(self, path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> None:
        text = path.read_bytes()
        if not text.startswith(b"tree"):
            raise Unprocessable(
                "this is no LightGBM text model",
                field="digest",
                hint="save it with booster.save_model('model.txt'), or push a pickle to the sklearn engine",
            )
        for start, end in ((b"tree", b"\nend of trees\n"), (b"\nparameters:", b"\nend of parameters\n")):
            if start in text and end not in text:  # the library's own parser crashes on some of these
                raise Unprocessable(f"the LightGBM model is cut short: no {end.decode().strip()!r}", field="digest")
        objective = _objective(text)
        self._booster = lgb.Booster(model_str=text.decode())
        self._binary = objective == "binary"
        features = self._booster.num_feature()
        self._input = TensorSpec("input", "FP64", (-1, features))
        self._values = self._booster.num_model_per_iteration()
        self._parameters = b"num_threads=%d" % threads
        name = "probabilities" if objective in ("binary", "multiclass", "multiclassova") else "prediction"
        own = Signature((self._input,), (spec_of(name, self._predict(np.ones((2, features)))),))
        self.signature = settle(own, signature, options.outputs)
        self._output = self.signature.outputs[0]
        self._one_row = self._prepared()  # last: nobody closes an engine that was refused

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        return [conform(self._predict(inputs[0]), self._output)]

    def _predict(self, rows: Array) -> Array:
        """`Booster.predict` without its search for the kind of its argument: 10 us a call for 26, one row.

        By the documented C functions, ``LGBM_BoosterPredictForMat`` and ``...SingleRowFast``.
        """
        check_table(rows, self._input)
        count, features = rows.shape
        values = np.empty((count, self._values))
        source, target = ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(values.ctypes.data)
        written = ctypes.c_int64()
        if count == 1:
            failed = _LIB.LGBM_BoosterPredictForMatSingleRowFast(self._one_row, source, ctypes.byref(written), target)
        else:
            failed = _LIB.LGBM_BoosterPredictForMat(
                self._booster._handle,
                source,
                _FP64,
                ctypes.c_int32(count),
                ctypes.c_int32(features),
                _ROW_MAJOR,
                _VALUE,
                0,
                _ALL_TREES,
                self._parameters,
                ctypes.byref(written),
                target,
            )
        if failed:
            raise RuntimeError(_LIB.LGBM_GetLastError().decode())
        if self._values > 1:
            return values
        return both_classes(values[:, 0]) if self._binary else values[:, 0]

    def _prepared(self) -> ctypes.c_void_p:
        """What the library works out once for all calls with one row. Freed by `close`."""
        prepared = ctypes.c_void_p()
        failed = _LIB.LGBM_BoosterPredictForMatSingleRowFastInit(
            self._booster._handle,
            _VALUE,
            0,
            _ALL_TREES,
            _FP64,
            ctypes.c_int32(self._input.shape[1]),
            self._parameters,
            ctypes.byref(prepared),
        )
        if failed:
            raise RuntimeError(_LIB.LGBM_GetLastError().decode())
        return prepared

    def close(self) -> None:
        """See `Engine.close`."""
        _LIB.LGBM_FastConfigFree(self._one_row)
        del self._booster


def _objective(text: bytes) -> str:
    """The objective's name out of the header, e.g. `binary` of ``objective=binary sigmoid:1``; empty without one."""
    header = text.partition(b"\nTree=")[0]
    line = next((line for line in header.splitlines() if line.startswith(b"objective=")), b"objective=")
    words = line.removeprefix(b"objective=").decode().split()
    return words[0] if words else ""
