"""Measures a sample against a loaded model: reference statistics of its inputs and of the model's predictions."""

from __future__ import annotations

from math import prod

import numpy as np

from headrace.core.errors import Unprocessable
from headrace.core.reference import Feature, Reference
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions
from headrace.observe.reference import describe
from headrace.server.engines.port import Array, Engine
from headrace.server.samples import Rows

COLUMNS_MAX = 1024
"""A tensor with more values a row (an image) is one feature."""
FEATURES_MAX = 2048
CHUNK = 256
"""Rows of one run of the model, unless its options allow fewer or its signature fixes them."""


def measure(engine: Engine, options: EngineOptions, rows: Rows) -> Reference:
    """The reference of a sample. Raises Unprocessable, and whatever the model raises."""
    inputs = []
    for k, spec in enumerate(engine.signature.inputs):
        inputs += _features(spec.name, _gapped(rows.inputs[k], rows.missing[k]), rows.names[k])
    usable = complete(rows) if options.nan == "reject" else np.ones(len(rows), bool)
    outputs: list[Feature] = []
    if usable.any():
        given = [
            _gapped(array, gaps)[usable] if array.dtype.kind == "f" else array[usable]
            for array, gaps in zip(rows.inputs, rows.missing, strict=True)
        ]
        answers = predict(engine, options, given, "reference")
        for spec, array in zip(engine.signature.outputs, answers, strict=True):
            width = prod(array.shape[1:])
            outputs += _features(spec.name, array, tuple(f"{spec.name}[{j}]" for j in range(width)))
    if len(inputs) + len(outputs) > FEATURES_MAX:
        count = len(inputs) + len(outputs)
        raise Unprocessable(f"reference: {count} features, at most {FEATURES_MAX} are kept", field="reference")
    return Reference(len(rows), tuple(inputs), tuple(outputs), int(usable.sum()))


def complete(rows: Rows) -> Array:
    """Which rows have nothing missing and nothing infinite: those that a model which refuses NaN would be given."""
    usable = np.ones(len(rows), bool)
    for array, missing in zip(rows.inputs, rows.missing, strict=True):
        bad = missing | ~np.isfinite(array) if array.dtype.kind == "f" else missing
        usable &= ~bad.reshape(len(rows), -1).any(1)
    return usable


def predict(engine: Engine, options: EngineOptions, inputs: list[Array], field: str) -> list[Array]:
    """A model's answers to rows, chunk by chunk. Raises Unprocessable where they cannot be split for it."""
    count = len(inputs[0])
    chunk = _chunk(engine.signature, options)
    if not engine.signature.batchable and count % chunk:
        raise Unprocessable(f"{field}: {count} rows, the model takes {chunk} at a time", field=field)
    parts = []
    for at in range(0, count, chunk):
        answers = engine.run([array[at : at + chunk] for array in inputs])
        parts.append([array.copy() for array in answers])  # an engine may use their memory for its next run
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _chunk(signature: Signature, options: EngineOptions) -> int:
    fixed = {spec.shape[0] for spec in signature.inputs if spec.shape and spec.shape[0] != -1}
    return min(fixed) if fixed else min(CHUNK, options.batch_max) if signature.batchable else 1


def _gapped(array: Array, missing: Array) -> Array:
    """With what is missing as NaN, or None where the dtype has no NaN."""
    if not missing.any():
        return array
    gapped = array.copy() if array.dtype.kind == "f" else array.astype(np.float64 if array.dtype.kind in "iu" else "O")
    gapped[missing] = None if gapped.dtype.kind == "O" else np.nan
    return gapped


def _features(tensor: str, array: Array, names: tuple[str, ...]) -> list[Feature]:
    width = prod(array.shape[1:])
    if array.ndim > 2 or width > COLUMNS_MAX:
        return [describe(array, tensor, None, tensor)]
    table = array.reshape(len(array), -1)
    return [describe(table[:, k], tensor, k, names[k] if width > 1 else names[0]) for k in range(table.shape[1])]
