"""A model's signature in the Open Inference Protocol's terms. Apart from `schema`, so that what only names a signature
- the command line, the control plane's resources - need not import NumPy."""

from __future__ import annotations

import msgspec


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
