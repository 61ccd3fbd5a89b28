"""Models written in Python: a class `Model`, from a file, a tar of a folder, or a trusted pickle.

::

    class Model:
        inputs = [("x", "FP32", (-1, 30))]       # optional when the version's signature is given
        outputs = [("y", "FP32", (-1,))]

        def load(self, folder): ...              # optional; `folder` holds what the tar held
        def predict(self, inputs): ...           # dict of arrays -> dict of arrays, or the only output

Its code is the user's; a replica process runs one such model and no other.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pickle
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.core.errors import InvalidInput, PlatformFault, Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.registry import pickles
from headrace.server.engines.artifact import kind_of
from headrace.server.engines.port import Array
from headrace.server.engines.tensors import check, conform, settle

MEMBERS_MAX = 100_000
"""Files in a tar."""
EXTRACTED_MAX = 16 << 30
"""Bytes that a tar may extract to."""
_numbers = itertools.count()


class PythonEngine:
    """A user's model in this process."""

    signature: Signature

    def __init__(self, path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> None:
        self._root = self.folder = Path(tempfile.mkdtemp(prefix="headrace-model-"))
        try:
            self._model = self._make(path, options.trust)
            self.signature = settle(_declared(self._model, signature), signature, options.outputs)
            if hasattr(self._model, "load"):
                self._model.load(self.folder)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        return call(self._model.predict, inputs, self.signature)

    def close(self) -> None:
        """See `Engine.close`."""
        self._model = None
        forget(self._root, self.folder)
        shutil.rmtree(self._root, ignore_errors=True)

    def _make(self, path: Path, trust: bool) -> Any:
        """The user's object, made but not loaded."""
        kind = kind_of(path)
        if kind == "pickle":
            if not trust:
                raise pickles.refusal(path, "the artifact", "options.trust", "push its source as model.py")
            made = pickle.loads(path.read_bytes())
            model = made() if isinstance(made, type) else made
        elif kind in ("tar", "compressed"):
            self.folder = extract(path, self._root)
            model = self._import()
        elif kind == "text":
            shutil.copyfile(path, self.folder / "model.py")
            model = self._import()
        else:
            raise Unprocessable(
                "this is no Python model: expected model.py, a tar of a folder that holds it, or a pickle",
                field="digest",
            )
        if not callable(getattr(model, "predict", None)):
            raise Unprocessable(f"{type(model).__name__} has no method predict(inputs)", field="digest")
        return model

    def _import(self) -> Any:
        """Import the folder's model.py, which may import its neighbours, and make its `Model`."""
        file = self.folder / "model.py"
        if not file.is_file():
            raise Unprocessable("the tar holds no model.py", field="digest")
        module = import_file(file, self.folder)
        if not isinstance(getattr(module, "Model", None), type):
            raise Unprocessable("model.py defines no class Model", field="digest")
        return module.Model()


def call(function: Callable[[dict[str, Array]], Any], inputs: Sequence[Array], signature: Signature) -> list[Array]:
    """Hand arrays to a user's function, and take what it gives as the signature promises it.

    Raises:
        PlatformFault: it gave something else.
        Exception: whatever the function raises.
    """
    # Arrays over a request's bytes are read-only, and models may work in place.
    own = [array if array.flags.writeable else array.copy() for array in inputs]
    given = function(dict(zip([spec.name for spec in signature.inputs], own, strict=True)))
    specs = signature.outputs
    if not isinstance(given, dict):
        if len(specs) != 1:
            raise PlatformFault(f"predict gave no dict, and the model has {len(specs)} outputs")
        return [conform(given, specs[0])]
    for spec in specs:
        if spec.name not in given:
            raise PlatformFault(f"predict gave no output {spec.name!r}, only {', '.join(map(repr, given))}")
    return [conform(given[spec.name], spec) for spec in specs]


def import_file(file: Path, folder: Path) -> ModuleType:
    """Import a file under a name of its own; it may import what lies in `folder`. `forget` undoes it."""
    name = f"headrace_model_{next(_numbers)}"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def forget(root: Path, folder: Path) -> None:
    """Forget all modules below `root`: the next model may have some of the same names."""
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(f"{root}{os.sep}"):
            del sys.modules[name]


def extract(path: Path, folder: Path) -> Path:
    """Extract a tar, compressed or not, into `folder`; links and paths that lead out of it are refused.

    Returns:
        Where model.py is: `folder`, or the only folder in it.
    """
    try:
        with tarfile.open(path) as tar:
            size = 0
            for count, member in enumerate(tar, 1):
                size += member.size
                if count > MEMBERS_MAX or size > EXTRACTED_MAX:
                    raise Unprocessable(
                        f"the tar holds more than {MEMBERS_MAX} files or {EXTRACTED_MAX >> 30} GiB", field="digest"
                    )
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        name = error.tarinfo.name
        raise Unprocessable(f"the tar is unsafe: {name!r} leads out of its folder", field="digest") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Unprocessable(f"the tar cannot be read: {type(error).__name__}", field="digest") from error
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if len(inside) == 1 and inside[0].is_dir():
        return inside[0]
    return folder


def _declared(model: Any, given: Signature | None) -> Signature:
    """The signature that the class declares; what it leaves out comes from the version's."""
    inputs = _specs(getattr(model, "inputs", None), "inputs")
    outputs = _specs(getattr(model, "outputs", None), "outputs")
    if given is None and not (inputs and outputs):
        raise InvalidInput(
            "signature: missing, and class Model does not declare both inputs and outputs",
            field="signature",
            hint='declare them, e.g. inputs = [("x", "FP32", (-1, 30))]',
        )
    own = Signature(inputs or (given.inputs if given else ()), outputs or (given.outputs if given else ()))
    check(own)
    return own


def _specs(declared: Iterable[Any] | None, field: str) -> tuple[TensorSpec, ...]:
    try:
        specs = []
        for item in declared or ():
            name, datatype, shape = (item.name, item.datatype, item.shape) if isinstance(item, TensorSpec) else item
            specs.append(TensorSpec(str(name), str(datatype), tuple(int(n) for n in shape)))
        return tuple(specs)
    except (TypeError, ValueError):
        raise InvalidInput(
            f"signature.{field}: Model.{field} is no list of (name, datatype, shape)",
            field=f"signature.{field}",
            hint='for example [("x", "FP32", (-1, 30))]',
        ) from None
