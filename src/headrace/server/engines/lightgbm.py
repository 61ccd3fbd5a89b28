"""LightGBM models: the text that `save_model` writes."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headrace.core.errors import Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.server.engines.native import Library, library
from headrace.server.engines.port import Array
from headrace.server.engines.tensors import both_classes, check_table, conform, settle, spec_of

_FP64, _ROW_MAJOR, _VALUE, _ALL_TREES = 1, 1, 0, -1
"""The library's codes: type of the input, its order, what to predict (by the objective's transformation), with what."""


class LightgbmEngine:
    """A booster. Classifiers give `probabilities` of all classes, other models `prediction`."""

    signature: Signature

    def __init__(self, path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> None:
        text = path.read_bytes()
        _check_whole(text)
        objective = _objective(text)
        self._booster = booster = Booster(text, threads)
        self._binary = objective == "binary"
        self._input = TensorSpec("input", "FP64", (-1, booster.features))
        name = "probabilities" if objective in ("binary", "multiclass", "multiclassova") else "prediction"
        own = Signature((self._input,), (spec_of(name, self._predict(np.ones((2, booster.features)))),))
        self.signature = settle(own, signature, options.outputs)
        self._output = self.signature.outputs[0]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        return [conform(self._predict(inputs[0]), self._output)]

    def _predict(self, rows: Array) -> Array:
        check_table(rows, self._input)
        values = self._booster.predict(rows)
        if values.shape[1] > 1:
            return values
        return both_classes(values[:, 0]) if self._binary else values[:, 0]

    def close(self) -> None:
        """See `Engine.close`."""
        self._booster.free()


class Booster:
    """A model in the library's memory, freed by `free` or with this object.

    Args:
        text: the model, whole.
        threads: of a prediction.
    """

    def __init__(self, text: bytes, threads: int) -> None:
        self._library = lib = shared_library()
        self._handle = handle = ctypes.c_void_p()
        iterations = ctypes.c_int()
        lib.check(lib.c.LGBM_BoosterLoadModelFromString(text, ctypes.byref(iterations), ctypes.byref(handle)))
        self._free = [weakref.finalize(self, lib.c.LGBM_BoosterFree, handle)]
        self._parameters = b"num_threads=%d" % threads
        self.features = lib.number("LGBM_BoosterGetNumFeature", handle, ctypes.c_int)
        self._values = lib.number("LGBM_BoosterNumModelPerIteration", handle, ctypes.c_int)
        self._one_row = self._prepared()
        self._free.append(weakref.finalize(self, lib.c.LGBM_FastConfigFree, self._one_row))

    def free(self) -> None:
        """Give the memory back; nothing may be asked afterwards."""
        while self._free:
            self._free.pop()()

    def _prepared(self) -> ctypes.c_void_p:
        """What the library works out once for all calls with one row."""
        prepared = ctypes.c_void_p()
        self._library.check(
            self._library.c.LGBM_BoosterPredictForMatSingleRowFastInit(
                self._handle,
                _VALUE,
                0,
                _ALL_TREES,
                _FP64,
                ctypes.c_int32(self.features),
                self._parameters,
                ctypes.byref(prepared),
            )
        )
        return prepared

    def predict(self, rows: Array) -> Array:
        """FP64 [rows, features], C-contiguous -> FP64 [rows, values]; 10 us for one row."""
        count, features = rows.shape
        values = np.empty((count, self._values))
        source, target = ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(values.ctypes.data)
        written = ctypes.c_int64()
        c = self._library.c
        if count == 1:
            failed = c.LGBM_BoosterPredictForMatSingleRowFast(self._one_row, source, ctypes.byref(written), target)
        else:
            failed = c.LGBM_BoosterPredictForMat(
                self._handle,
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
        self._library.check(failed)
        return values


def shared_library() -> Library:
    """The C library, loaded once per process. Raises ImportError."""
    return library("lightgbm", "lib_lightgbm", "LGBM_GetLastError")


def _check_whole(text: bytes) -> None:
    """Refuse what the library's own parser would crash on. Raises Unprocessable."""
    if not text.startswith(b"tree"):
        raise Unprocessable(
            "this is no LightGBM text model",
            field="digest",
            hint="save it with booster.save_model('model.txt'), or push a pickle to the sklearn engine",
        )
    for start, end in ((b"tree", b"\nend of trees\n"), (b"\nparameters:", b"\nend of parameters\n")):
        if start in text and end not in text:
            raise Unprocessable(f"the LightGBM model is cut short: no {end.decode().strip()!r}", field="digest")
    if b"\0" in text:
        raise Unprocessable("the LightGBM model is damaged: a zero byte in its text", field="digest")


def _objective(text: bytes) -> str:
    """The objective's name out of the header, e.g. `binary` of ``objective=binary sigmoid:1``; empty without one."""
    header = text.partition(b"\nTree=")[0]
    line = next((line for line in header.splitlines() if line.startswith(b"objective=")), b"objective=")
    words = line.removeprefix(b"objective=").decode().split()
    return words[0] if words else ""
