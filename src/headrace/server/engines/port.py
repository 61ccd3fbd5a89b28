"""The engine port: what runs a model version's artifact inside a replica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headrace.core.report import StepReport
from headrace.core.schema import DATATYPES, Signature

Array = NDArray[Any]


class Engine(Protocol):
    """A loaded model version. One thread at a time calls `run`."""

    signature: Signature
    """What `run` takes and gives, in order. Outputs are those that `EngineOptions.outputs` selects."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the model once.

        Args:
            inputs: one C-contiguous array per input of `signature`, in its order, of its dtype and of a shape that
                its shape admits. BYTES are object arrays of `bytes`.

        Returns:
            One C-contiguous array per output of `signature`, in its order and dtypes.

        Raises:
            Exception: whatever the model raises; the caller isolates the row at fault.
        """

    def close(self) -> None:
        """Free what the engine holds."""


@runtime_checkable
class Composed(Protocol):
    """An engine made of steps."""

    def example(self) -> list[Array]:
        """Inputs to warm up with that mean something to its steps."""

    def take_steps(self) -> tuple[StepReport, ...]:
        """What each step did since the last call; from any thread."""


def warm_inputs(engine: Engine) -> list[Array]:
    """What to run an engine on before anybody has asked it anything."""
    return engine.example() if isinstance(engine, Composed) else example(engine.signature)


IMAGE_SIDE = 64
"""What a free dimension of an image is in an example: convolutions do not fit into one pixel."""


def example(signature: Signature, rows: int = 1) -> list[np.ndarray[Any, Any]]:
    """Inputs of the signature's shapes, for warm-up: ones, or empty text.

    A free dimension is `rows` when it is the first, else 1, or `IMAGE_SIDE` in a tensor of four dimensions.
    """
    arrays = []
    for spec in signature.inputs:
        free = IMAGE_SIDE if len(spec.shape) == 4 else 1
        shape = [n if n != -1 else rows if k == 0 else free for k, n in enumerate(spec.shape)]
        if spec.datatype == "BYTES":
            array = np.empty(shape, object)
            array.fill(b"")
            arrays.append(array)
        else:
            arrays.append(np.ones(shape, DATATYPES[spec.datatype]))
    return arrays
