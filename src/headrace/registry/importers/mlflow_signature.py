"""MLflow's signatures (``inputs``, ``outputs``, ``params``: each a JSON text in ``MLmodel``) as ours.

A column spec is a table with a row per prediction, ``{"name", "type", "required"}`` a column; a tensor spec is
``{"type": "tensor", "tensor-spec": {"dtype", "shape"}, "name"}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.core.errors import Unprocessable
from headrace.core.signature import TensorSpec

_COLUMN_TYPES = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "binary": "BYTES",
}
_DTYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "str": "BYTES", "object": "BYTES", "bytes": "BYTES",
}  # fmt: skip
NUMBERS = frozenset(_COLUMN_TYPES.values()) - {"BYTES"}


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]


class _Item(msgspec.Struct):
    type: Any
    name: str | int | None = None
    tensor: _Tensor | None = msgspec.field(default=None, name="tensor-spec")


@dataclass(frozen=True, slots=True)
class Schema:
    """One of the three texts: the columns of a table, or tensors."""

    specs: tuple[TensorSpec, ...]
    """A column is a tensor of shape [-1]; the name of a tensor without one is empty."""
    columns: bool

    @property
    def numeric(self) -> bool:
        """A table of numbers."""
        return self.columns and all(spec.datatype in NUMBERS for spec in self.specs)

    def named(self, only: str, several: str) -> tuple[TensorSpec, ...]:
        """The specs, those without a name called `only`, or `several` with their number where there are more."""
        names = [spec.name or (only if len(self.specs) == 1 else f"{several}{k}") for k, spec in enumerate(self.specs)]
        return tuple(TensorSpec(name, spec.datatype, spec.shape) for name, spec in zip(names, self.specs, strict=True))


def parse(text: object, part: str) -> Schema | None:
    """A schema out of its JSON text; None where there is none.

    Args:
        text: as ``MLmodel`` has it.
        part: ``inputs`` or ``outputs``, for messages.

    Raises:
        Unprocessable: it is no schema, or holds a type that a tensor cannot have; names the field.
    """
    if text is None:
        return None
    field = f"signature.{part}"
    try:
        items = msgspec.json.decode(text, type=list[_Item]) if isinstance(text, str) else None
    except msgspec.DecodeError as error:
        raise Unprocessable(f"MLmodel: {field} is no schema: {error}", field=field) from None
    if items is None:
        raise Unprocessable(f"MLmodel: {field}: expected a JSON text, got {type(text).__name__}", field=field)
    if not items:
        return None
    specs = tuple(_spec(item, f"{field}[{k}]") for k, item in enumerate(items))
    kinds = {item.tensor is None for item in items}
    if len(kinds) > 1:
        raise Unprocessable(f"MLmodel: {field} mixes columns and tensors", field=field)
    return Schema(specs, kinds.pop())


def _spec(item: _Item, field: str) -> TensorSpec:
    name = "" if item.name is None else str(item.name)
    if item.tensor is not None:
        dtype = "str" if item.tensor.dtype.startswith(("<U", "|S", "str")) else item.tensor.dtype
        if dtype not in _DTYPES:
            raise Unprocessable(f"MLmodel: {field}: no tensor here is of dtype {item.tensor.dtype!r}", field=field)
        return TensorSpec(name, _DTYPES[dtype], tuple(item.tensor.shape))
    if not isinstance(item.type, str) or item.type not in _COLUMN_TYPES:
        known = ", ".join(_COLUMN_TYPES)
        raise Unprocessable(f"MLmodel: {field}: type {item.type!r} has no tensor, expected one of {known}", field=field)
    return TensorSpec(name, _COLUMN_TYPES[item.type], (-1,))
