"""A model's signature in the Open Inference Protocol's terms, and its datatypes as NumPy has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.core.signature import Signature, TensorSpec

__all__ = ["DATATYPES", "Signature", "TensorSpec", "datatype_of"]

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
