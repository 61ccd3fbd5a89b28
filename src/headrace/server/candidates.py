"""Makes optimised ONNX models of one: by onnxruntime's graph optimiser, and by its quantisation, which needs `onnx`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)

from headrace.core.errors import Unprocessable
from headrace.core.optimization import CandidateName
from headrace.server.samples import Rows

CALIBRATION_ROWS = 512
"""Rows that static quantisation looks at, spread evenly over those given."""
CALIBRATION_BATCH = 32
PER_CHANNEL_OPSET = 13
"""From this version on the operators have a scale for each channel."""
STATIC = {"QDQDisableWeightAdjustForInt32Bias": True}
"""That adjustment, of onnxruntime 1.2x, raises ValueError for weights that are quantised per channel."""
INTEGER = {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"}
NOTHING = "nothing to quantise: it has no layers of matrix products or convolutions"


def make(name: CandidateName, source: Path, target: Path, calibration: Rows | None, names: tuple[str, ...]) -> None:
    """Write a candidate.

    Args:
        name: which.
        source: the model.
        target: where it goes.
        calibration: for static INT8.
        names: of the model's inputs.

    Raises:
        Unprocessable: it cannot be made of this model. Others: whatever the libraries raise.
    """
    if name == "graph":
        _optimise(source, target)
        return
    prepared = target.with_suffix(".prepared")
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        if name == "dynamic-int8":
            quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True)
        else:
            assert calibration is not None
            finer = _opset(prepared) >= PER_CHANNEL_OPSET
            quantize_static(prepared, target, _Reader(calibration, names), per_channel=finer, extra_options=STATIC)
    finally:
        prepared.unlink(missing_ok=True)
    if not any(node.op_type in INTEGER for node in onnx.load(target).graph.node):
        raise Unprocessable(NOTHING)


def _opset(path: Path) -> int:
    return max((one.version for one in onnx.load(path).opset_import if one.domain in ("", "ai.onnx")), default=0)


def _optimise(source: Path, target: Path) -> None:
    """What onnxruntime would do at each load, done once; but for layouts that suit only this machine's processor."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(target)
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    ort.InferenceSession(str(source), settings, providers=["CPUExecutionProvider"])


class _Reader(CalibrationDataReader):  # type: ignore[misc] # untyped
    """Rows for calibration, batch by batch."""

    def __init__(self, rows: Rows, names: tuple[str, ...]) -> None:
        count = min(len(rows), CALIBRATION_ROWS)
        chosen = np.linspace(0, len(rows) - 1, count).astype(int)
        inputs = [array[chosen] for array in rows.inputs]
        self._batches: Iterator[dict[str, Any]] = iter(
            [
                {name: array[at : at + CALIBRATION_BATCH] for name, array in zip(names, inputs, strict=True)}
                for at in range(0, count, CALIBRATION_BATCH)
            ]
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next batch; None after the last."""
        return next(self._batches, None)
