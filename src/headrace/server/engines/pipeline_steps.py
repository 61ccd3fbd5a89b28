"""The steps of a pipeline as they run: a user's function or a model, in chunks, metered, their faults named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from headrace.core.errors import CallerError, HeadraceError, InvalidInput, PlatformFault, RetryLater, Unprocessable
from headrace.core.pipeline import python_of
from headrace.core.report import StepReport
from headrace.core.schema import Signature
from headrace.core.telemetry import Durations
from headrace.server.engines.artifact import reason
from headrace.server.engines.pipeline_plan import PlannedStep
from headrace.server.engines.port import Array, Engine
from headrace.server.engines.python import call, import_file
from headrace.server.engines.tensors import fits

FLOATS = ("FP16", "FP32", "FP64")


class PythonStep:
    """A function of a file, or a class of it with `predict` and perhaps `load`. Implements `port.Engine`.

    Args:
        planned: the step.
        folder: of the pipeline's files.
        modules: those that were imported already, by file; steps of one file share its module.
    """

    def __init__(self, planned: PlannedStep, folder: Path, modules: dict[str, ModuleType]) -> None:
        file, name = python_of(planned.step)
        self.signature: Signature = planned.signature
        field = f"steps.{planned.step.name}.python"
        if not (folder / file).is_file():
            raise Unprocessable(f"step {planned.step.name!r}: the artifact holds no {file}", field=field)
        if file not in modules:
            modules[file] = import_file(folder / file, folder)
        found = getattr(modules[file], name, None)
        if isinstance(found, type):
            model: Any = found()
            if hasattr(model, "load"):
                model.load(folder)
            found = getattr(model, "predict", None)
        if not callable(found):
            raise Unprocessable(
                f"step {planned.step.name!r}: {file} has no function {name!r}, nor a class of that name with predict",
                field=field,
            )
        self._function: Callable[[dict[str, Array]], Any] = found

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        return call(self._function, inputs, self.signature)

    def close(self) -> None:
        """See `Engine.close`."""


class RunningStep:
    """A loaded step.

    Args:
        planned: what it reads and writes.
        engine: runs it.
        rows_max: most rows in one run; None: no limit.
        finite: whether NaN and infinities among its inputs are refused.
    """

    def __init__(self, planned: PlannedStep, engine: Engine, rows_max: int | None, finite: bool) -> None:
        self.planned = planned
        self._engine = engine
        self._rows_max = rows_max
        self._finite = tuple(finite and spec.datatype in FLOATS for spec in planned.signature.inputs)
        self._meter = Meter(planned.step.name)

    def run(self, inputs: Sequence[Array], rows: int) -> list[Array]:
        """Run the step on all rows, in chunks where it says so.

        Raises:
            HeadraceError: whatever goes wrong, with the step's name.
        """
        name = self.planned.step.name
        try:
            given = [self._check(k, array) for k, array in enumerate(inputs)]
            most = self._rows_max or rows
            if rows <= most:
                return self._chunk(given, rows)
            parts = []
            for at in range(0, rows, most):
                chunk = [array[at : at + most] for array in given]
                parts.append(self._chunk(chunk, len(chunk[0])))
            return [self._join(k, column) for k, column in enumerate(zip(*parts, strict=True))]
        except (Exception, SystemExit) as error:  # whatever a model or a user's code raises
            self._meter.fail()
            raise named(error, name) from error

    def _check(self, k: int, array: Array) -> Array:
        spec = self.planned.signature.inputs[k]
        if not fits(array.shape, spec):
            raise InvalidInput(
                f"input {spec.name!r} is {spec.datatype} {list(array.shape)}, expected {list(spec.shape)}"
            )
        if self._finite[k] and not np.isfinite(array).all():
            raise InvalidInput(f"input {spec.name!r}: values must be finite {spec.datatype}")
        if self.planned.shared[k]:
            array = array.view()
            array.flags.writeable = False
        return array

    def _chunk(self, inputs: Sequence[Array], rows: int) -> list[Array]:
        start = time.monotonic()
        outputs = self._engine.run(inputs)
        self._meter.ran(rows, time.monotonic() - start)
        kept = list(inputs)
        for k, (spec, output) in enumerate(zip(self.planned.signature.outputs, outputs, strict=True)):
            if output.shape[:1] != (rows,):
                given = output.shape[0] if output.ndim else "no"
                raise PlatformFault(
                    f"gave {given} rows of {spec.name!r} for {rows}: a step gives one row for each that it takes"
                )
            # What one step gives another may work upon in place: no two tensors share memory.
            if any(np.may_share_memory(output, other) for other in kept):
                outputs[k] = output.copy()
            kept.append(outputs[k])
        return outputs

    def _join(self, k: int, chunks: Sequence[Array]) -> Array:
        shapes = {chunk.shape[1:] for chunk in chunks}
        if len(shapes) > 1:
            raise PlatformFault(
                f"gave {self.planned.signature.outputs[k].name!r} of different shapes for chunks of one batch: "
                f"{', '.join(str(list(shape)) for shape in sorted(shapes))}"
            )
        return np.concatenate(chunks)

    def take(self) -> StepReport:
        """What the step did since the last call."""
        return self._meter.take()


class Meter:
    """A step's numbers; the engine's thread adds to them while the replica's reads."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._lock = threading.Lock()
        self._rows = self._failures = 0
        self._durations = Durations()

    def ran(self, rows: int, seconds: float) -> None:
        """Count a run."""
        with self._lock:
            self._rows += rows
            self._durations.add(seconds)
            self._durations.trim()

    def fail(self) -> None:
        """Count a run that failed."""
        with self._lock:
            self._failures += 1

    def take(self) -> StepReport:
        """All since the last call."""
        with self._lock:
            report = StepReport(self._step, self._rows, self._failures, self._durations.take())
            self._rows = self._failures = 0
        return report


def named(error: BaseException, step: str) -> HeadraceError:
    """An error that says in which step it happened; its kind - whose fault it is - stays."""
    if not isinstance(error, HeadraceError):
        return PlatformFault(f"step {step!r} failed: {reason(error, Path('/'))}")
    kind = type(error) if isinstance(error, CallerError | RetryLater) else PlatformFault
    return kind(f"step {step!r}: {error.message}", field=error.field, hint=error.hint)
