"""XGBoost models: the JSON and UBJSON that `save_model` writes."""

from __future__ import annotations

import ctypes
import json
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.core.errors import Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.server.engines.artifact import head
from headrace.server.engines.native import Library, library
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
        content = path.read_bytes()
        if content[1:2] in b"LilUI":  # the length of the first key: UBJSON
            check_whole(content)
        self._booster = booster = Booster(content, threads)
        learner = booster.config()["learner"]
        objective = learner["objective"]["name"]
        # A linear booster has no in-place prediction.
        linear = learner["learner_train_param"]["booster"] == "gblinear"
        self._values = booster.predict_matrix if linear else booster.predict
        self._binary = objective == "binary:logistic"
        self._input = TensorSpec("input", "FP32", (-1, booster.features))
        once = self._predict(np.ones((1, booster.features), np.float32))
        name = "probabilities" if self._binary or objective == "multi:softprob" else "prediction"
        own = Signature((self._input,), (spec_of(name, once),))
        self.signature = settle(own, signature, options.outputs)
        self._output = self.signature.outputs[0]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        # The library refuses an address that is no multiple of four, where a request's bytes may well begin.
        return [conform(self._predict(np.require(inputs[0], requirements="A")), self._output)]

    def _predict(self, rows: Array) -> Array:
        check_table(rows, self._input)
        values = self._values(rows)
        return both_classes(values) if self._binary else values

    def close(self) -> None:
        """See `Engine.close`."""
        del self._values
        self._booster.free()


class Booster:
    """A model in the library's memory, freed by `free` or with this object.

    Args:
        content: the model, JSON or UBJSON; the library tells them apart.
        threads: of a prediction.
    """

    def __init__(self, content: bytes, threads: int) -> None:
        self._library = lib = shared_library()
        self._handle = handle = ctypes.c_void_p()
        lib.check(lib.c.XGBoosterCreate(None, ctypes.c_uint64(0), ctypes.byref(handle)))
        self._free = weakref.finalize(self, lib.c.XGBoosterFree, handle)
        self._threads = threads
        self._set(threads)
        lib.check(lib.c.XGBoosterLoadModelFromBuffer(handle, content, ctypes.c_uint64(len(content))))
        self._set(threads)  # loading brought the training's back
        self.features = lib.number("XGBoosterGetNumFeature", handle, ctypes.c_uint64)
        # As the scikit-learn wrapper does: trees after the best round were grown only to find out that it was.
        best = self._attribute("best_iteration")
        self._trees = _config(0 if best is None else int(best) + 1)
        self._all = _config(0)

    def free(self) -> None:
        """Give the memory back; nothing may be asked afterwards."""
        self._free()

    def _set(self, threads: int) -> None:
        for name, value in ((b"nthread", b"%d" % threads), (b"verbosity", b"0")):
            self._library.check(self._library.c.XGBoosterSetParam(self._handle, name, value))

    def _attribute(self, name: str) -> str | None:
        text, found = ctypes.c_char_p(), ctypes.c_int()
        get = self._library.c.XGBoosterGetAttr
        self._library.check(get(self._handle, name.encode(), ctypes.byref(text), ctypes.byref(found)))
        return text.value.decode() if found.value and text.value is not None else None

    def config(self) -> Any:
        """What the model says of itself: the JSON of the library's ``XGBoosterSaveJsonConfig``."""
        length, text = ctypes.c_uint64(), ctypes.c_char_p()
        save = self._library.c.XGBoosterSaveJsonConfig
        self._library.check(save(self._handle, ctypes.byref(length), ctypes.byref(text)))
        return json.loads(text.value or b"")

    def predict(self, rows: Array) -> Array:
        """FP32 [rows, features], C-contiguous -> FP32; in place, 56 us for one row."""
        shape, axes, values = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64(), ctypes.c_void_p()
        failed = self._library.c.XGBoosterPredictFromDense(
            self._handle,
            _table(rows),
            self._trees,
            None,
            ctypes.byref(shape),
            ctypes.byref(axes),
            ctypes.byref(values),
        )
        self._library.check(failed)
        return _copied(values, shape[: axes.value])

    def predict_matrix(self, rows: Array) -> Array:
        """The same by a copy of the rows in the library's own form, for boosters that need it."""
        lib, matrix = self._library, ctypes.c_void_p()
        form = b'{"missing":NaN,"nthread":%d}' % self._threads
        lib.check(lib.c.XGDMatrixCreateFromDense(_table(rows), form, ctypes.byref(matrix)))
        try:
            shape, axes, values = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64(), ctypes.c_void_p()
            failed = lib.c.XGBoosterPredictFromDMatrix(
                self._handle, matrix, self._all, ctypes.byref(shape), ctypes.byref(axes), ctypes.byref(values)
            )
            lib.check(failed)
            return _copied(values, shape[: axes.value])
        finally:
            lib.check(lib.c.XGDMatrixFree(matrix))


def shared_library() -> Library:
    """The C library, loaded once per process. Raises ImportError."""
    return library("xgboost", "libxgboost", "XGBGetLastError")


def _table(rows: Array) -> bytes:
    """Where the rows are, as the library wants to be told (NumPy's array interface)."""
    table = b'{"data":[%d,true],"shape":[%d,%d],"typestr":"<f4","version":3}'
    return table % (rows.ctypes.data, *rows.shape)


def _copied(values: ctypes.c_void_p, sizes: list[int]) -> Array:
    """A prediction, copied: the library's buffer is the next call's too."""
    return np.frombuffer(ctypes.string_at(values.value or 0, 4 * math.prod(sizes)), np.float32).reshape(sizes)


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
