"""What the engines for tabular models have in common: one table in, one or a few columns out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headrace.core.errors import InvalidInput
from headrace.core.schema import DATATYPES, Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.server.engines.port import Array

Predict = Callable[[Array], Array]


class TableEngine:
    """A model of one input table and named functions of it."""

    def __init__(
        self, width: int, datatype: str, functions: dict[str, tuple[Predict, Array]], options: EngineOptions
    ) -> None:
        """`functions`: output's name -> (function of the table, its result for one row, from which shape and datatype
        are read)."""
        unknown = [name for name in options.outputs if name not in functions]
        if unknown:
            raise InvalidInput(
                f"options.outputs: no output {unknown[0]!r}, the model has {', '.join(functions)}",
                field="options.outputs",
            )
        names = options.outputs or tuple(functions)
        outputs = []
        for name in names:
            sample = functions[name][1]
            kind = _DATATYPE_OF_KIND.get(sample.dtype.kind, "BYTES")
            outputs.append(TensorSpec(name, "FP32" if sample.dtype == np.float32 else kind, (-1, *sample.shape[1:])))
        self.signature = Signature((TensorSpec("input", datatype, (-1, width)),), tuple(outputs))
        self._functions = [functions[name][0] for name in names]
        self._dtypes = [DATATYPES[spec.datatype] for spec in outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        table = inputs[0]
        results = []
        for function, dtype in zip(self._functions, self._dtypes, strict=True):
            result = np.asarray(function(table))
            if dtype.kind == "O":
                texts = np.empty(result.shape, object)
                texts.reshape(-1)[:] = [str(item).encode() for item in result.reshape(-1)]
                result = texts
            results.append(np.ascontiguousarray(result, dtype))
        return results

    def close(self) -> None:
        """Free the model."""
        self._functions.clear()


_DATATYPE_OF_KIND = {"f": "FP64", "i": "INT64", "u": "INT64", "b": "BOOL"}


def two_columns(positive: Array) -> Array:
    """Probabilities of both classes out of the positive one's."""
    return np.stack([1 - positive, positive], axis=1)
