"""An MLflow ``python_function`` as a model of the python engine: a tar of its folder and a ``model.py`` that loads it.

The ``model.py`` is written here and runs in the replica, which needs MLflow; nothing of ours imports it.
"""

from __future__ import annotations

from pathlib import Path

from headrace.core.signature import Signature
from headrace.registry import tar

_SOURCE = '''\
"""An MLflow python_function behind Headrace's python engine; written by the importer."""

import numpy as np

from headrace.core.errors import Unprocessable

INPUTS = {inputs!r}
OUTPUTS = {outputs!r}
COLUMNS = {columns!r}  # the model takes a pandas frame
NAMED = {named!r}  # its tensors have names; else it takes the array itself


class Model:
    inputs = INPUTS
    outputs = OUTPUTS

    def load(self, folder):
        try:
            import mlflow.pyfunc
            import pandas
        except ModuleNotFoundError as error:
            raise Unprocessable(
                f"an MLflow python_function needs {{error.name}}, which this platform does not have",
                field="engine",
                hint="install it where the platform runs: pip install 'headrace[mlflow]'",
            ) from None
        self._frame = pandas.DataFrame
        self._model = mlflow.pyfunc.load_model(str(folder / "model"))

    def predict(self, inputs):
        given = {{name: text(array, datatype) for (name, datatype, _), array in zip(INPUTS, inputs.values())}}
        if COLUMNS:
            return by_name(self._model.predict(self._frame(given)))
        return by_name(self._model.predict(given if NAMED else next(iter(given.values()))))


def text(array, datatype):
    if datatype != "BYTES":
        return array
    return np.array([item.decode() for item in array.reshape(-1)], object).reshape(array.shape)


def by_name(answer):
    names = [name for name, _, _ in OUTPUTS]
    if isinstance(answer, dict):
        return {{name: np.asarray(answer[name]) for name in names}}
    if hasattr(answer, "columns"):  # a frame: a column for each output, or all of them as the only one
        if set(names) <= set(map(str, answer.columns)):
            return {{name: answer[name].to_numpy() for name in names}}
        answer = answer.to_numpy()
    array = np.asarray(answer)
    wanted = len(OUTPUTS[0][2])
    return {{names[0]: array.reshape(-1) if wanted == 1 and array.shape == (len(array), 1) else array}}
'''


def write(path: Path, folder: Path, signature: Signature, columns: bool, named: bool) -> None:
    """Write the tar: ``model.py`` and the model's folder as ``model/``."""
    source = _SOURCE.format(
        inputs=[(s.name, s.datatype, s.shape) for s in signature.inputs],
        outputs=[(s.name, s.datatype, s.shape) for s in signature.outputs],
        columns=columns,
        named=named,
    )
    wrapper = path.with_suffix(".model.py")
    wrapper.write_text(source)
    inside = {f"model/{name}": item for name, item in tar.files_in(folder).items()}
    tar.write(path, {"model.py": wrapper, **inside})
