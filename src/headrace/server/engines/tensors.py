"""What all adapters do with signatures and arrays: choose outputs, compare, convert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.core.errors import InvalidInput, PlatformFault
from headrace.core.schema import DATATYPES, Signature, TensorSpec
from headrace.server.engines.port import Array


def select(outputs: Sequence[TensorSpec], wanted: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The outputs that `wanted` names, in its order; all when it names none. Raises InvalidInput."""
    by_name = {spec.name: spec for spec in outputs}
    for name in wanted:
        if name not in by_name:
            raise InvalidInput(
                f"options.outputs: unknown output {name!r}, the model gives {', '.join(map(repr, by_name))}",
                field="options.outputs",
            )
    if len(set(wanted)) != len(wanted):
        raise InvalidInput(f"options.outputs: {', '.join(wanted)}: an output is named twice", field="options.outputs")
    return tuple(by_name[name] for name in wanted) or tuple(outputs)


def settle(own: Signature, given: Signature | None, wanted: Sequence[str]) -> Signature:
    """The signature to serve: the model's own with the `wanted` outputs, or the given one if the model agrees to it.

    A given signature may fix a dimension that the model leaves free, or leave its outputs out, and nothing else.

    Raises:
        InvalidInput: names the field of the signature that the model contradicts, or `options.outputs`.
    """
    settled = Signature(own.inputs, select(own.outputs, wanted))
    if given is None:
        return settled
    given = Signature(given.inputs, select(given.outputs, wanted) if given.outputs else settled.outputs)
    _agree(given.inputs, settled.inputs, "signature.inputs")
    _agree(given.outputs, settled.outputs, "signature.outputs")
    return given


def _agree(given: Sequence[TensorSpec], own: Sequence[TensorSpec], field: str) -> None:
    if [spec.name for spec in given] != [spec.name for spec in own]:
        raise InvalidInput(f"{field}: {_names(given)}, the model has {_names(own)}, in this order", field=field)
    for k, (said, true) in enumerate(zip(given, own, strict=True)):
        where = f"{field}[{k}]"
        if said.datatype != true.datatype:
            raise InvalidInput(
                f"{where}.datatype: {said.datatype!r}, the model's {true.name!r} is {true.datatype}",
                field=f"{where}.datatype",
            )
        fits = len(said.shape) == len(true.shape) and all(
            n == m or (m == -1 and n > 0) for n, m in zip(said.shape, true.shape, strict=True)
        )
        if not fits:
            raise InvalidInput(
                f"{where}.shape: {list(said.shape)}, the model's {true.name!r} is {list(true.shape)}",
                field=f"{where}.shape",
            )


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in specs) or "none"


def check(signature: Signature, partly: bool = False) -> None:
    """Refuse a signature that cannot be served. Raises InvalidInput naming the field.

    Args:
        signature: to look at.
        partly: it may leave its outputs to the model.
    """
    for field, specs in (("signature.inputs", signature.inputs), ("signature.outputs", signature.outputs)):
        if not specs and not (partly and field == "signature.outputs"):
            raise InvalidInput(f"{field}: empty, at least one tensor is needed", field=field)
        if len({spec.name for spec in specs}) != len(specs):
            raise InvalidInput(f"{field}: {_names(specs)}: a name stands twice", field=field)
        for k, spec in enumerate(specs):
            if spec.datatype not in DATATYPES:
                raise InvalidInput(
                    f"{field}[{k}].datatype: {spec.datatype!r}, expected one of {', '.join(DATATYPES)}",
                    field=f"{field}[{k}].datatype",
                )
            if any(n < 1 and n != -1 for n in spec.shape):
                raise InvalidInput(
                    f"{field}[{k}].shape: {list(spec.shape)}, expected sizes from 1, or -1 for any",
                    field=f"{field}[{k}].shape",
                )


def spec_of(name: str, value: Array) -> TensorSpec:
    """The spec of an output seen once for one row: its first dimension is free. Raises InvalidInput."""
    datatype = next((key for key, dtype in DATATYPES.items() if dtype == value.dtype), None)
    if value.dtype.kind in "SUO":
        datatype = "BYTES"
    if datatype is None or value.ndim == 0:
        raise InvalidInput(f"signature.outputs: {name!r} is {value.dtype} {list(value.shape)}, which cannot be served")
    return TensorSpec(name, datatype, (-1, *value.shape[1:]))


def fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    """Whether a shape is one that the spec admits."""
    return len(shape) == len(spec.shape) and all(m in (-1, n) for n, m in zip(shape, spec.shape, strict=True))


def conform(value: Any, spec: TensorSpec) -> Array:
    """An output as the signature promises it: its dtype, an admitted shape, C-contiguous.

    Widths may differ (float64 for FP32 is narrowed), kinds may not.

    Raises:
        PlatformFault: the model gave something else.
    """
    array = np.asarray(value)
    dtype = DATATYPES[spec.datatype]
    if array.dtype == dtype and dtype.kind != "O" and array.flags.c_contiguous and fits(array.shape, spec):
        return array
    if not fits(array.shape, spec) or not (
        array.dtype.kind in "SUO" if spec.datatype == "BYTES" else np.can_cast(array.dtype, dtype, "same_kind")
    ):
        raise PlatformFault(
            f"the model gave {array.dtype} {list(array.shape)} for {spec.name!r}, "
            f"its signature says {spec.datatype} {list(spec.shape)}"
        )
    if spec.datatype == "BYTES":
        return to_bytes(array)
    return np.ascontiguousarray(array, dtype).reshape(array.shape)  # reshape: it makes (1,) of a scalar


def check_table(rows: Array, spec: TensorSpec) -> None:
    """Assert what a library that is handed only an address takes on trust. Raises PlatformFault."""
    if rows.dtype != DATATYPES[spec.datatype] or not fits(rows.shape, spec) or not rows.flags.c_contiguous:
        raise PlatformFault(f"the engine was handed {rows.dtype} {list(rows.shape)} for {spec.name!r}")


def both_classes(positive: Array) -> Array:
    """Probabilities of both classes, [rows, 2], from those of the positive one."""
    table = np.empty((len(positive), 2), positive.dtype)
    np.subtract(1, positive, out=table[:, 0])
    table[:, 1] = positive
    return table


def to_text(array: Array, name: str) -> Array:
    """BYTES as an object array of `str`. Raises InvalidInput when an item is not UTF-8."""
    text = np.empty(array.size, object)
    for k, item in enumerate(array.reshape(-1)):
        try:
            text[k] = item.decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"input {name!r}: item {k} is not UTF-8 text", field="inputs") from None
    return text.reshape(array.shape)


def to_bytes(array: Array) -> Array:
    """Text of any dtype as an object array of `bytes`."""
    items = np.empty(array.size, object)
    for k, item in enumerate(array.reshape(-1).tolist()):
        items[k] = item if isinstance(item, bytes) else str(item).encode()
    return items.reshape(array.shape)
