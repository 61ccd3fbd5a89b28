"""A model's signature in the Open Inference Protocol's terms, and its datatypes as NumPy has them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
"""OIP datatype -> NumPy dtype. BYTES tensors are object arrays of `bytes`."""

_OF_DTYPE = {dtype: name for name, dtype in DATATYPES.items()}


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """The OIP datatype of a NumPy dtype; text and object dtypes are BYTES; None where there is none."""
    if dtype.kind in "SUO":
        return "BYTES"
    return _OF_DTYPE.get(dtype.newbyteorder("<"))


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output. `shape` has -1 for a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True):
    """What a version takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batchable(self) -> bool:
        """Whether the first dimension of every tensor is free, so that requests may share a run."""
        return all(spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs))
