"""PyTorch programs: TorchScript, and what `torch.export.save` writes. Needs the extra ``torch``.

Neither names its outputs, and TorchScript tells no datatypes and shapes either. So names are those of the signature
that is given, by position; without one an exported program's inputs keep the names of the arguments, and outputs are
``output``, ``output_0``, ... or the keys of a dict.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import InvalidInput, PlatformFault, Unprocessable
from headrace.core.schema import DATATYPES, Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.registry import pickles
from headrace.server.engines.artifact import kind_of
from headrace.server.engines.port import Array, example
from headrace.server.engines.tensors import conform, settle, spec_of

_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""PyTorch's own switch: no pickle that it reads may name anything but tensors."""
_DATATYPE_OF = {getattr(torch, dtype.name): name for name, dtype in DATATYPES.items() if dtype.kind != "O"}
Program = Callable[..., Any]


class TorchEngine:
    """A program on the CPU."""

    signature: Signature

    def __init__(self, path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> None:
        torch.set_num_threads(threads)  # of the process, which runs one such model and no other
        if kind_of(path) != "zip":
            raise Unprocessable("this is neither TorchScript nor an exported program", field="digest")
        if not options.trust:
            _check_pickles(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which old models are kept in
            if _is_script(path):
                self._program, inputs = _script(path, signature)
            else:
                self._program, inputs = _exported(path, options.trust)
        self._keys: list[str] | None = None
        if signature is not None:
            inputs = _renamed(inputs, signature.inputs)
        own = Signature(inputs, self._outputs(inputs, signature))
        self.signature = settle(own, signature, options.outputs)
        names = [spec.name for spec in own.outputs]
        self._wanted = [(names.index(spec.name), spec) for spec in self.signature.outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        values = self._call(inputs)
        return [conform(values[k], spec) for k, spec in self._wanted]

    def close(self) -> None:
        """See `Engine.close`."""
        del self._program

    def _call(self, inputs: Sequence[Array]) -> list[Array]:
        """All outputs. A program may change its arguments in place, and arrays over a request's bytes are read-only."""
        tensors = [torch.from_numpy(array if array.flags.writeable else array.copy()) for array in inputs]
        with torch.inference_mode():
            given = self._program(*tensors)
        if isinstance(given, dict):
            self._keys = [str(key) for key in given]
            given = list(given.values())
        values = given if isinstance(given, list | tuple) else [given]
        for value in values:
            if not isinstance(value, torch.Tensor):
                raise PlatformFault(f"the program gave {type(value).__name__} where a tensor was expected")
        return [value.contiguous().numpy() for value in values]

    def _outputs(self, inputs: tuple[TensorSpec, ...], given: Signature | None) -> tuple[TensorSpec, ...]:
        """The outputs, measured on an example; named as the given signature names them."""
        values = self._call(example(Signature(inputs, ())))
        names = self._keys or (["output"] if len(values) == 1 else [f"output_{k}" for k in range(len(values))])
        specs = tuple(spec_of(name, value) for name, value in zip(names, values, strict=True))
        if given is None or not given.outputs:
            return specs
        if self._keys is not None:  # these have names
            return specs
        if len(given.outputs) != len(specs):
            raise InvalidInput(
                f"signature.outputs: {len(given.outputs)} tensors, the program gives {len(specs)}",
                field="signature.outputs",
            )
        return _renamed(specs, given.outputs)


def _check_pickles(path: Path) -> None:
    """Raises Unprocessable where a pickle in the archive calls what runs code."""
    if pickles.scan(path).dangerous:
        raise pickles.refusal(path, "a part of the artifact", "options.trust", "export the model to ONNX")


def _is_script(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _script(path: Path, given: Signature | None) -> tuple[Program, tuple[TensorSpec, ...]]:
    """A TorchScript module, and its inputs as the given signature has them. Raises InvalidInput."""
    if given is None:
        raise InvalidInput(
            "signature: missing, and TorchScript does not say which datatypes and shapes it takes",
            field="signature",
            hint='give it, e.g. inputs [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}]',
        )
    module: Any = torch.jit.load(str(path), map_location="cpu")
    module.eval()
    arguments = [item.name for item in module.forward.schema.arguments[1:] if not item.has_default_value()]
    if len(given.inputs) < len(arguments):
        raise InvalidInput(
            f"signature.inputs: {len(given.inputs)} tensors, the program takes {', '.join(arguments)}",
            field="signature.inputs",
        )
    for k, spec in enumerate(given.inputs):
        if spec.datatype == "BYTES":
            raise InvalidInput(
                f"signature.inputs[{k}].datatype: BYTES, a tensor of PyTorch holds numbers",
                field=f"signature.inputs[{k}].datatype",
            )
    return module, given.inputs


def _exported(path: Path, trust: bool) -> tuple[Program, tuple[TensorSpec, ...]]:
    """An exported program, and its inputs as it was exported with."""
    before = os.environ.get(_ONLY_WEIGHTS)
    if not trust:  # its loader falls back to loading any pickle
        os.environ[_ONLY_WEIGHTS] = "1"
    try:
        with path.open("rb") as file:  # of a path it wants the extension, and artifacts have none
            program = torch.export.load(file)
    finally:
        if before is None:
            os.environ.pop(_ONLY_WEIGHTS, None)
        else:
            os.environ[_ONLY_WEIGHTS] = before
    named = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = tuple(_spec(str(name), named.get(name)) for name in program.graph_signature.user_inputs)
    return program.module(), inputs


def _spec(name: str, value: Any) -> TensorSpec:
    """An argument's spec; sizes that are symbols are free. Raises Unprocessable."""
    if not isinstance(value, torch.Tensor) or value.dtype not in _DATATYPE_OF:
        what = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise Unprocessable(f"input {name!r} is {what}, which cannot be sent", field="digest")
    return TensorSpec(name, _DATATYPE_OF[value.dtype], tuple(n if type(n) is int else -1 for n in value.shape))


def _renamed(own: Sequence[TensorSpec], given: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The model's own specs under the given names, by position; another number of them is left for `settle`."""
    if len(own) != len(given):
        return tuple(own)
    return tuple(TensorSpec(g.name, o.datatype, o.shape) for o, g in zip(own, given, strict=True))
