"""Runs a version's signature tests on its engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from headrace.core.errors import HeadraceError
from headrace.core.golden import Golden, GoldenCase, GoldenFault, GoldenResult, GoldenTensor
from headrace.core.schema import DATATYPES, Signature
from headrace.core.specs import EngineOptions
from headrace.server.codec import Codec
from headrace.server.engines.artifact import reason
from headrace.server.engines.port import Array, Engine
from headrace.server.tensors import from_json


def run_golden(engine: Engine, options: EngineOptions, golden: Golden, path: Path) -> tuple[GoldenResult, ...]:
    """Run every case.

    Args:
        engine: of the version.
        options: it was loaded with.
        golden: the cases.
        path: of its artifact, kept out of messages.
    """
    # The codec that serves: an input that a caller could not send is none here either.
    codec = Codec("golden", 1, engine.signature, finite=options.nan == "reject")
    results = []
    for number, case in enumerate(golden.cases, 1):
        tolerance = golden.tolerance if case.tolerance is None else case.tolerance
        try:
            outputs = engine.run(_inputs(codec, case))
            faults = _compare(engine.signature, outputs, case.outputs, tolerance)
        except (Exception, SystemExit) as error:  # whatever the model raises
            text = error.message if isinstance(error, HeadraceError) else reason(error, path)
            faults = [GoldenFault(text)]
        results.append(GoldenResult(case.name or f"case {number}", tuple(faults)))
    return tuple(results)


def _inputs(codec: Codec, case: GoldenCase) -> list[Array]:
    body = memoryview(msgspec.json.encode({"inputs": case.inputs}))
    part = codec.decode(body, 0, -1)
    if part.arrays is not None:
        return part.arrays
    spec = codec.signature.inputs[0]
    return [np.array(part.flat, DATATYPES[spec.datatype]).reshape(part.rows, *spec.shape[1:])]


def _compare(
    signature: Signature, outputs: Sequence[Array], expected: Sequence[GoldenTensor], tolerance: float
) -> list[GoldenFault]:
    by_name = {spec.name: (spec, array) for spec, array in zip(signature.outputs, outputs, strict=True)}
    faults = []
    for tensor in expected:
        if tensor.name not in by_name:
            text = f"there is no output {tensor.name!r}, the model gives {', '.join(by_name)}"
            faults.append(GoldenFault(text, tensor.name))
            continue
        spec, got = by_name[tensor.name]
        fault = _differs(tensor, spec.datatype, got, tolerance)
        if fault is not None:
            faults.append(fault)
    return faults


def _differs(tensor: GoldenTensor, datatype: str, got: Array, tolerance: float) -> GoldenFault | None:
    name = tensor.name
    if tensor.datatype != datatype:
        text = f"output {name!r} is {datatype}, expected {tensor.datatype}"
        return GoldenFault(text, name, expected=tensor.datatype, got=datatype)
    if list(got.shape) != tensor.shape:
        text = f"output {name!r} has the shape {list(got.shape)}, expected {tensor.shape}"
        return GoldenFault(text, name, expected=tensor.shape, got=list(got.shape))
    size = int(np.prod(tensor.shape))
    wanted = from_json(tensor.data, tensor.shape, datatype, size, f"outputs {name!r}")
    if wanted.dtype.kind == "f":
        far, near = wanted.astype(np.float64), got.astype(np.float64)
        with np.errstate(invalid="ignore"):
            close = np.abs(near - far) <= tolerance * np.maximum(1.0, np.abs(far))
        wrong = ~(close | (near == far) | (np.isnan(near) & np.isnan(far)))
    else:
        wrong = np.asarray(wanted != got)
    if not wrong.any():
        return None
    at = np.unravel_index(int(np.flatnonzero(wrong)[0]), wrong.shape)
    values = [_plain(array[at]) for array in (wanted, got)]
    index = [int(n) for n in at]
    count = f", and {int(wrong.sum()) - 1} more" if wrong.sum() > 1 else ""
    text = f"output {name!r} at {index}: expected {values[0]!r}, got {values[1]!r}{count}"
    return GoldenFault(text, name, index, values[0], values[1])


def _plain(value: object) -> object:
    """A value that JSON can write."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    plain = value.item() if isinstance(value, np.generic) else value
    return str(plain) if isinstance(plain, float) and not np.isfinite(plain) else plain
