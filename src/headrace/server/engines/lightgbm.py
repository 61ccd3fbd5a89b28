"""LightGBM models: the text that `save_model` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightgbm as lgb
import numpy as np

from headrace.core.errors import Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.server.engines.port import Array
from headrace.server.engines.tensors import both_classes, conform, settle, spec_of


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
        self._threads = threads
        self._booster = lgb.Booster(model_str=text.decode())
        self._binary = objective == "binary"
        features = self._booster.num_feature()
        once = self._predict(np.ones((1, features)))
        name = "probabilities" if objective in ("binary", "multiclass", "multiclassova") else "prediction"
        own = Signature((TensorSpec("input", "FP64", (-1, features)),), (spec_of(name, once),))
        self.signature = settle(own, signature, options.outputs)
        self._output = self.signature.outputs[0]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        return [conform(self._predict(inputs[0]), self._output)]

    def _predict(self, rows: Array) -> Array:
        values: Array = np.asarray(self._booster.predict(rows, num_threads=self._threads))
        return both_classes(values) if self._binary else values

    def close(self) -> None:
        """See `Engine.close`."""
        del self._booster


def _objective(text: bytes) -> str:
    """The objective's name out of the header, e.g. `binary` of ``objective=binary sigmoid:1``; empty without one."""
    header = text.partition(b"\nTree=")[0]
    line = next((line for line in header.splitlines() if line.startswith(b"objective=")), b"objective=")
    words = line.removeprefix(b"objective=").decode().split()
    return words[0] if words else ""
