"""Optimises one model: ``python -m headrace.server.optimize``, its request on standard input, in a process of its own.

Reads one line, an `OptimizationRequest`; writes a line for each step, and at last the report or the fault:

    {"progress": "dynamic-int8: compare"}
    {"report": ...} | {"error": {"message", "field", "hint"}}

The candidate that the report picks is in the request's folder, as ``NAME.onnx``.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import get_args

import msgspec

from headrace.core.errors import HeadraceError, Unprocessable
from headrace.core.optimization import CandidateName, CandidateReport, OptimizationReport, Verdict
from headrace.core.specs import Fault, OptimizationAnswer, OptimizationRequest, SampleFile
from headrace.registry.gate import ROWS_MIN, choose, judge
from headrace.server.comparing import Judge, differences
from headrace.server.engines.artifact import reason
from headrace.server.engines.load import load
from headrace.server.engines.port import Array, Engine
from headrace.server.golden import run_golden
from headrace.server.measuring import complete, predict
from headrace.server.samples import Rows, read

MEMORY_MB = 8192
"""Most memory of this process, in MiB: an allocation beyond it fails."""
BATCH = 64
VALUES = 1 << 20
"""Values of a timed batch at most: fewer rows of a large input."""
TIMED_S, ROUNDS = 3.0, (5, 200)
"""How long source and candidate are run by turns, and how often at least and at most."""
Progress = Callable[[str], None]


class Optimizer:
    """One model with its held-out rows, against which candidates are held. Raises Unprocessable where there are too few
    rows, or they are not of the model."""

    def __init__(self, request: OptimizationRequest) -> None:
        self._request = request
        self._source = Path(request.path)
        self._engine = load("onnx", self._source, request.options, request.signature).engine
        self._signature = self._engine.signature
        rows = self._rows(request.data, "data")
        if len(rows) < ROWS_MIN:
            text = f"data: {len(rows)} usable rows, expected at least {ROWS_MIN}: so few neither pass nor fail"
            raise Unprocessable(text, field="data", hint="hold out more rows")
        self._calibration = None if request.calibration is None else self._rows(request.calibration, "calibration")
        self._inputs = list(rows.inputs)
        self._judge = Judge(request.asked, self._signature, rows.labels)
        self._answers = predict(self._engine, request.options, self._inputs, "data")
        self._batch = self._timed_batch()
        self._runs_ms: list[float] = []

    def _rows(self, file: SampleFile, field: str) -> Rows:
        """Those of a sample that the model would be given."""
        found = read(Path(file.path), self._signature, file.label, field)
        keep = complete(found)
        if not keep.any():
            raise Unprocessable(f"{field}: no row without missing values", field=field)
        inputs = tuple(array[keep] for array in found.inputs)
        labels = None if found.labels is None else found.labels[keep]
        return Rows(inputs, tuple(gaps[keep] for gaps in found.missing), found.names, labels)

    def _timed_batch(self) -> list[Array]:
        sizes = [spec.shape[0] for spec in self._signature.inputs if spec.shape[0] != -1]
        width = max(sum(array[0].size for array in self._inputs), 1)
        count = min(sizes) if sizes else max(min(BATCH, self._request.options.batch_max, VALUES // width), 1)
        return [array[:count] for array in self._inputs]

    def run(self, progress: Progress) -> OptimizationReport:
        """Make, compare and time every candidate."""
        size = self._source.stat().st_size
        candidates = []
        for name in get_args(CandidateName):
            if name == "static-int8" and self._calibration is None:
                candidates.append(CandidateReport(name, "not tried", "it needs calibration rows: --calibration"))
                continue
            candidates.append(self._candidate(name, progress))
        picked, why = choose(size, candidates, self._request.asked.pick)
        run_ms = median(self._runs_ms) if self._runs_ms else 0.0
        rows, batch = len(self._inputs[0]), len(self._batch[0])
        return OptimizationReport(rows, batch, size, round(run_ms, 4), tuple(candidates), picked, why)

    def _candidate(self, name: CandidateName, progress: Progress) -> CandidateReport:
        # Imported here, where it is caught: the extra `optimize` may not be installed.
        from headrace.server.candidates import make

        target = Path(self._request.folder) / f"{name}.onnx"
        progress(f"{name}: make")
        try:
            make(name, self._source, target, self._calibration, tuple(spec.name for spec in self._signature.inputs))
            engine = load("onnx", target, self._request.options, self._signature).engine
        except Exception as error:  # of the libraries: this model is not for this optimisation
            text = error.message if isinstance(error, HeadraceError) else reason(error, target)
            return CandidateReport(name, "not tried", text)
        try:
            return self._held(name, engine, target, progress)
        finally:
            engine.close()

    def _held(self, name: CandidateName, engine: Engine, path: Path, progress: Progress) -> CandidateReport:
        """A candidate held against its source."""
        progress(f"{name}: compare")
        answers = predict(engine, self._request.options, self._inputs, "data")
        found = self._judge.compare(self._answers, answers)
        verdict, why = judge(found)
        if verdict == "passed":
            verdict, why = self._tested(engine, path, why)
        progress(f"{name}: time")
        run_ms, speedup = self._timed(engine)
        size = path.stat().st_size
        largest = differences(self._answers, answers)
        return CandidateReport(name, verdict, why, size, round(run_ms, 4), round(speedup, 3), found, *largest)

    def _tested(self, engine: Engine, path: Path, why: str) -> tuple[Verdict, str]:
        """The source's signature tests hold for what is made of it too."""
        golden = self._request.golden
        tests = () if golden is None else run_golden(engine, self._request.options, golden, path)
        for test in tests:
            if test.faults:
                return "failed", f"signature test {test.case}: {test.faults[0].message}"
        return "passed", why

    def _timed(self, engine: Engine) -> tuple[float, float]:
        """Median milliseconds of a run, and how many times as fast as the source's: by turns, so that whatever else the
        machine does meets both."""
        taken: tuple[list[float], list[float]] = ([], [])
        pair = (self._engine, engine)
        for one in pair:
            one.run(self._batch)
        end = time.perf_counter() + TIMED_S
        while len(taken[0]) < ROUNDS[0] or (time.perf_counter() < end and len(taken[0]) < ROUNDS[1]):
            for one, times in zip(pair, taken, strict=True):
                start = time.perf_counter()
                one.run(self._batch)
                times.append((time.perf_counter() - start) * 1e3)
        self._runs_ms += taken[0]
        return median(taken[1]), median(taken[0]) / max(median(taken[1]), 1e-9)


def _leave(folder: str) -> None:
    """End with whoever asked, and leave nothing behind: a control plane that was killed cannot."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def answer(line: bytes, progress: Progress) -> OptimizationAnswer:
    """The answer to a request."""
    try:
        request = msgspec.json.decode(line, type=OptimizationRequest)
        threading.Thread(target=_leave, args=(request.folder,), daemon=True).start()
        return OptimizationAnswer(report=Optimizer(request).run(progress))
    except HeadraceError as error:
        return OptimizationAnswer(error=Fault(error.message, error.field, error.hint))
    except Exception as error:  # whatever the model, or a library, raises
        return OptimizationAnswer(error=Fault(f"the optimisation fails: {type(error).__name__}: {error}"[:500]))


def main() -> int:
    """Entry point of the process."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not stand between the replies
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MB << 20, MEMORY_MB << 20))
    os.nice(10)  # what serves comes first

    def tell(found: OptimizationAnswer) -> None:
        replies.write(msgspec.json.encode(found) + b"\n")

    tell(answer(sys.stdin.buffer.readline(), lambda step: tell(OptimizationAnswer(progress=step))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
