"""User code: a file or folder with a class ``Model``, or a pickled object or function.

::

    class Model:
        inputs = [("x", "FP32", (-1, 3))]
        outputs = [("sum", "FP32", (-1,))]

        def load(self, folder): ...           # optional; `folder` holds model.py and what lies beside it
        def predict(self, inputs):            # {"x": array} -> {"sum": array}, or the array of the only output
            return inputs["x"].sum(axis=1)
"""

from __future__ import annotations

import importlib.util
import pickle
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.core.errors import InvalidInput, Unprocessable
from headrace.core.schema import DATATYPES, Signature, TensorSpec, datatype_of
from headrace.core.specs import EngineOptions
from headrace.server.engines.port import Array, example


class PythonEngine:
    """A user's object."""

    def __init__(self, predict: Any, signature: Signature, folder: str | None) -> None:
        self.signature = signature
        self._predict = predict
        self._folder = folder
        self._names = [spec.name for spec in signature.inputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        result = self._predict(dict(zip(self._names, inputs, strict=True)))
        return [_output(result, spec, len(self.signature.outputs)) for spec in self.signature.outputs]

    def close(self) -> None:
        """Forget the object and what was unpacked for it."""
        self._predict = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _output(result: Any, spec: TensorSpec, count: int) -> Array:
    """One output out of what the model returned, checked."""
    if isinstance(result, dict):
        if spec.name not in result:
            raise ValueError(f"predict returned {sorted(result)}, output {spec.name!r} is missing")
        value = result[spec.name]
    elif count == 1:
        value = result
    else:
        raise TypeError(f"predict returned {type(result).__name__}, expected a dict of {count} outputs")
    array = np.asarray(value)
    if len(array.shape) != len(spec.shape) or any(
        want not in (-1, have) for have, want in zip(array.shape, spec.shape, strict=True)
    ):
        raise ValueError(f"output {spec.name!r} has shape {list(array.shape)}, declared {list(spec.shape)}")
    if spec.datatype == "BYTES":
        texts = np.empty(array.shape, object)
        items = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
        texts.reshape(-1)[:] = items
        return texts
    return np.ascontiguousarray(array, DATATYPES[spec.datatype])


def load(path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> PythonEngine:
    """Load user code; see `engines.load.load`."""
    folder = None
    with path.open("rb") as file:
        pickled = file.read(1) == b"\x80"
    if pickled:
        model = _unpickle(path, options)
    else:
        folder = tempfile.mkdtemp(prefix="headrace-model-")
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        else:
            shutil.copyfile(path, Path(folder) / "model.py")
        model = _from_source(Path(folder))
    if hasattr(model, "load"):
        model.load(folder)
    predict = getattr(model, "predict", model)
    if not callable(predict):
        raise Unprocessable("the object has no method predict", field="artifact")
    inputs = signature.inputs if signature else _specs(model, "inputs")
    if signature or hasattr(model, "outputs"):
        outputs = signature.outputs if signature else _specs(model, "outputs")
    else:
        outputs = _probe(predict, inputs)
    if options.outputs:
        by_name = {spec.name: spec for spec in outputs}
        unknown = [name for name in options.outputs if name not in by_name]
        if unknown:
            raise InvalidInput(
                f"options.outputs: no output {unknown[0]!r}, the model has {', '.join(by_name)}",
                field="options.outputs",
            )
        outputs = tuple(by_name[name] for name in options.outputs)
    return PythonEngine(predict, Signature(inputs, outputs), folder)


def _unpickle(path: Path, options: EngineOptions) -> Any:
    if not options.trust:
        raise Unprocessable(
            "a pickle runs code when loaded and is refused",
            field="options.trust",
            hint="push it with --trust if you know who made it",
        )
    with path.open("rb") as file:
        return pickle.load(file)


def _from_source(folder: Path) -> Any:
    source = folder / "model.py"
    if not source.exists():
        raise Unprocessable("the archive has no model.py at its top", field="artifact")
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("model", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "Model"):
        raise Unprocessable("model.py has no class Model", field="artifact")
    return module.Model()


def _specs(model: Any, name: str) -> tuple[TensorSpec, ...]:
    """The model's `inputs` or `outputs` attribute."""
    declared = getattr(model, name, None)
    if not declared:
        raise Unprocessable(
            f"the model declares no {name}",
            field="signature",
            hint=f'give the class {name} = [("x", "FP32", (-1, 3))], or push it with a signature',
        )
    specs = [
        item if isinstance(item, TensorSpec) else TensorSpec(item[0], item[1], tuple(item[2])) for item in declared
    ]
    for spec in specs:
        if spec.datatype not in DATATYPES:
            raise InvalidInput(
                f"{name}: datatype {spec.datatype!r} of {spec.name!r}, expected one of {', '.join(DATATYPES)}",
                field=f"signature.{name}",
            )
    return tuple(specs)


def _probe(predict: Any, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Outputs read from a run on example rows, where the model declares none."""
    arrays = example(Signature(inputs, ()), 2)
    result = predict({spec.name: array for spec, array in zip(inputs, arrays, strict=True)})
    named = result if isinstance(result, dict) else {"output": result}
    specs = []
    for name, value in named.items():
        array = np.asarray(value)
        batch = bool(array.shape) and array.shape[0] == 2
        shape = (-1, *array.shape[1:]) if batch else array.shape
        specs.append(TensorSpec(name, datatype_of(array.dtype) or "BYTES", shape))
    return tuple(specs)
