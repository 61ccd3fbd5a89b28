"""Pipelines: models and Python steps that run one after the other in this process, the whole batch step by step.

The rows stay aligned: a step gives one row for each that it takes. Nothing is serialised between the steps, and a
tensor is let go when its last reader has run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from headrace.core import pipeline as declaration
from headrace.core.errors import HeadraceError, InvalidInput, Unprocessable
from headrace.core.pipeline import Input, Pipeline
from headrace.core.report import StepReport
from headrace.core.schema import DATATYPES, Signature, TensorSpec
from headrace.core.specs import EngineOptions, ServedPart
from headrace.server.engines.artifact import kind_of, reason
from headrace.server.engines.load import load
from headrace.server.engines.pipeline_plan import PlannedStep, plan
from headrace.server.engines.pipeline_steps import PythonStep, RunningStep
from headrace.server.engines.port import Array, Engine, example
from headrace.server.engines.python import PythonEngine, extract, forget
from headrace.server.engines.tensors import fits, settle

EXAMPLE_ROWS = 2
"""Rows of the example: a step that does not keep its rows shows itself."""


class PipelineEngine:
    """A loaded pipeline. Implements `port.Engine` and `port.Composed`.

    Args:
        parts: the registered versions that it names.
        path: ``pipeline.toml``, or an uncompressed tar of the folder that holds it.
    """

    signature: Signature

    def __init__(
        self,
        parts: Sequence[ServedPart],
        path: Path,
        options: EngineOptions,
        signature: Signature | None,
        threads: int,
    ) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="headrace-pipeline-"))
        self._folder = self._root
        self._engines: dict[tuple[str, tuple[str, ...]], Engine] = {}
        self._imported: dict[str, ModuleType] = {}
        try:
            declared = declaration.read(path)
            if kind_of(path) == "tar":
                self._folder = extract(path, self._root)
            planned = plan(declared, {part.reference: part.signature for part in parts})
            self.signature = settle(planned.signature, signature, options.outputs)
            by_name = dict(zip([spec.name for spec in planned.signature.outputs], planned.outputs, strict=True))
            self._outputs = [by_name[spec.name] for spec in self.signature.outputs]
            self._unmade = [None] * (planned.tensors - len(declared.inputs))
            self._example = _example(declared, self.signature, self._folder)
            by_reference = {part.reference: part for part in parts}
            self._steps = tuple(self._load(step, by_reference, threads) for step in planned.steps)
            self._check_modules(declared, by_reference)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`. Errors name the step."""
        rows = inputs[0].shape[0]
        tensors: list[Any] = [*inputs, *self._unmade]
        for step in self._steps:
            planned = step.planned
            given = step.run([tensors[k] for k in planned.inputs], rows)
            for k, output in zip(planned.outputs, given, strict=True):
                tensors[k] = output
            for k in planned.done:
                tensors[k] = None
        return [tensors[k] for k in self._outputs]

    def example(self) -> list[Array]:
        """See `Composed.example`."""
        return list(self._example)

    def take_steps(self) -> tuple[StepReport, ...]:
        """See `Composed.take_steps`."""
        return tuple(step.take() for step in self._steps)

    def close(self) -> None:
        """See `Engine.close`."""
        self._steps = ()
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._imported.clear()
        forget(self._root, self._folder)
        shutil.rmtree(self._root, ignore_errors=True)

    def _load(self, planned: PlannedStep, parts: dict[str, ServedPart], threads: int) -> RunningStep:
        step = planned.step
        if step.model is None:
            try:
                return RunningStep(
                    planned, PythonStep(planned, self._folder, self._imported), step.batch_max, finite=False
                )
            except HeadraceError:
                raise
            except (Exception, SystemExit) as error:  # whatever the user's module raises
                text = reason(error, self._root)
                raise Unprocessable(
                    f"step {step.name!r}: {step.python} does not load: {text}", field="digest"
                ) from error
        part = parts[step.model]
        names = tuple(spec.name for spec in planned.signature.outputs)
        engine = self._engines.get((step.model, names))
        if engine is None:
            options = msgspec.structs.replace(part.options, outputs=names)
            try:
                engine = load(part.engine, Path(part.artifact), options, part.signature, threads).engine
            except HeadraceError as error:
                raise type(error)(f"step {step.name!r}: {error.message}", field=error.field, hint=error.hint) from error
            self._engines[step.model, names] = engine
        rows_max = step.batch_max or part.options.batch_max
        return RunningStep(planned, engine, rows_max, part.options.nan == "reject")

    def _check_modules(self, declared: Pipeline, parts: dict[str, ServedPart]) -> None:
        """Python finds a module by its name in all folders: two of one name in a process would be one.

        Raises:
            Unprocessable: names both.
        """
        folders = {declaration.FILE: (self._folder, "")}
        for (reference, _), engine in self._engines.items():
            if isinstance(engine, PythonEngine):
                folders[reference] = (engine.folder, parts[reference].digest)
        seen: dict[str, tuple[str, str]] = {}
        for owner, (folder, digest) in folders.items():
            entry = "model" if digest else ""  # imported under a name of its own
            for name in _modules(folder) - {entry}:
                other, same = seen.setdefault(name, (owner, digest))
                if same != digest:
                    raise Unprocessable(
                        f"{other} and {owner} both bring a Python module {name!r}; in one process they would be one",
                        field="digest",
                        hint="rename one of them",
                    )


def _modules(folder: Path) -> set[str]:
    """Names of the modules and packages at the top of a folder."""
    files = {path.stem for path in folder.glob("*.py")}
    return files | {path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))}


def _example(declared: Pipeline, signature: Signature, folder: Path) -> list[Array]:
    """Rows to warm up with: what the declaration gives, else the port's own."""
    found = example(signature, EXAMPLE_ROWS)
    for k, (one, spec) in enumerate(zip(declared.inputs, signature.inputs, strict=True)):
        if one.example_file is not None or one.example is not None:
            row = _row(one, spec, folder)
            found[k] = np.stack([row] * EXAMPLE_ROWS)
    return found


def _row(one: Input, spec: TensorSpec, folder: Path) -> Array:
    """One row of an input. Raises InvalidInput."""
    field = f"inputs.{one.name}"
    if one.example_file is not None:
        try:
            content: Any = (folder / one.example_file).read_bytes()
        except OSError as error:
            raise InvalidInput(
                f"input {one.name!r}: example_file {one.example_file!r}: {error.strerror}", field=field
            ) from None
    else:
        content = one.example
    try:
        if spec.datatype == "BYTES":
            texts = np.array(content, object)
            row = np.empty(texts.shape, object)
            for index, text in np.ndenumerate(texts):
                row[index] = text if isinstance(text, bytes) else text.encode()
        else:
            row = np.array(content, DATATYPES[spec.datatype])
    except (TypeError, ValueError, OverflowError, AttributeError):
        raise InvalidInput(f"input {one.name!r}: example is no {spec.datatype}", field=field) from None
    if not fits((1, *row.shape), spec):
        raise InvalidInput(
            f"input {one.name!r}: example has the shape {list(row.shape)}, one row of it {list(spec.shape[1:])}",
            field=field,
        )
    return row
