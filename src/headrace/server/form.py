"""Makes the serving form of an ONNX model: ``python -m headrace.server.form``, a `FormSpec` on standard input.

It runs beside the replicas, at the lowest priority, after a first load: nobody waits for it. Everything is written to
a folder of its own and renamed whole; a process that is killed leaves one that the next sweeps away. A model that has
no use for a form, or whose form gives other bits, gets a record that says so, and is not tried again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from headrace.core.errors import HeadraceError, Unprocessable
from headrace.core.forms import RECORD, folder_of
from headrace.core.process import Events
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, FormSpec, ProcessEvent
from headrace.core.verified import digest_of, verify
from headrace.registry.folder import sync
from headrace.server.engines.onnx import OnnxEngine, open_artifact, open_form, settings_for
from headrace.server.engines.onnx_form import GRAPH, WEIGHTS, Form
from headrace.server.engines.port import Array, example

MAKING = ".making-"
WEIGHT_MIN = 1024
"""Bytes of the smallest tensor that leaves the graph."""
SEED = 0
ROWS = (1, 3, 8)
"""Batches on which the form is compared with the artifact; on each that the model takes."""
ROUNDS = 7
LOSS = 1.03
"""Prepacking is given up where runs without it take at most so much of the time with it."""
ROUNDING = 1e-4
"""Largest difference that rounding explains, relative to the largest output."""


def inputs_for(signature: Signature, rows: int, generator: np.random.Generator) -> list[Array]:
    """Random numbers where the model takes any; ones where they may be indices; empty text."""
    arrays: list[Array] = []
    for array in example(signature, rows):
        noise = array.dtype.kind == "f"
        arrays.append(generator.standard_normal(array.shape).astype(array.dtype) if noise else array)
    return arrays


def identical(ours: Sequence[Array], theirs: Sequence[Array]) -> bool:
    """The same bits in the same shapes."""
    return all(
        a.dtype == b.dtype and a.shape == b.shape and (a.tolist() == b.tolist() if a.dtype.kind == "O" else same(a, b))
        for a, b in zip(ours, theirs, strict=True)
    )


def same(a: Array, b: Array) -> bool:
    """The same bytes."""
    return a.tobytes() == b.tobytes()


def close(ours: Sequence[Array], theirs: Sequence[Array]) -> bool:
    """The same but for rounding. NaN is no rounding."""
    for a, b in zip(ours, theirs, strict=True):
        if a.dtype.kind != "f":
            if not identical([a], [b]):
                return False
        elif a.shape != b.shape or not np.all(
            np.abs(a - b) <= ROUNDING * max(float(np.max(np.abs(b), initial=0.0)), 1e-30)
        ):
            return False
    return True


def convert(artifact: Path, folder: Path) -> None:
    """Write `GRAPH` and `WEIGHTS`: the model as it is after the optimisations that do not depend on the machine."""
    settings = settings_for(1)
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(folder / GRAPH)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
    settings.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(WEIGHT_MIN)
    )
    open_artifact(artifact, 1, settings)
    if not (folder / WEIGHTS).exists():
        raise Unprocessable("it has no weights to map")


def compare(artifact: Path, form: Form) -> Form:
    """Run the artifact and its form side by side, and record what came out. Raises Unprocessable."""
    engine = OnnxEngine(artifact, EngineOptions(), None, 1)
    names = [spec.name for spec in engine.signature.inputs]
    outputs = [spec.name for spec in engine.signature.outputs]

    def run(session: ort.InferenceSession, arrays: Sequence[Array]) -> Any:
        return session.run(outputs, dict(zip(names, arrays, strict=True)))

    packed, unpacked = open_form(form, 1, prepack=True), open_form(form, 1, prepack=False)
    generator = np.random.default_rng(SEED)
    exact, quick, compared = True, True, 0
    for rows in ROWS:
        arrays = inputs_for(engine.signature, rows, generator)
        try:
            expected = engine.run(arrays)
        except Exception:  # a batch that the model does not take
            if rows == 1:
                raise
            continue
        compared += 1
        if not identical(run(packed, arrays), expected):
            raise Unprocessable(f"its outputs for {rows} rows are not the artifact's, bit by bit")
        found = run(unpacked, arrays)
        exact = exact and identical(found, expected)
        quick = quick and close(found, expected)
    arrays = inputs_for(engine.signature, 1, generator)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):  # in turn: what else the machine does then falls on both
        for which, session in ((True, packed), (False, unpacked)):
            started = time.perf_counter()
            run(session, arrays)
            taken[which].append((time.perf_counter() - started) * 1e3)
    with_ms, without_ms = median(taken[True]), median(taken[False])
    lossless = exact and without_ms <= with_ms * LOSS
    return msgspec.structs.replace(
        form, prepack=not lossless, quick=quick, packed_ms=round(with_ms, 3), unpacked_ms=round(without_ms, 3)
    )


def make(spec: FormSpec) -> Form:
    """Have a form, or the record of why there is none. Raises OSError, Unprocessable where the artifact is damaged."""
    forms, artifact = Path(spec.folder), Path(spec.artifact)
    forms.mkdir(parents=True, exist_ok=True)
    with (forms / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for other in forms.parent.glob("onnxruntime-*"):
            if other != forms:  # of a release that was here before
                shutil.rmtree(other, ignore_errors=True)
        for left in forms.glob(f"{MAKING}*"):
            shutil.rmtree(left, ignore_errors=True)
        verify(artifact, spec.digest)
        make_room(forms, spec.max_bytes, artifact.stat().st_size)
        making = forms / f"{MAKING}{os.getpid()}"
        making.mkdir()
        try:
            form = made(artifact, making)
            (making / RECORD).write_bytes(msgspec.json.encode(msgspec.structs.replace(form, place="")))
            final = folder_of(forms, spec.digest)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(making, final)
            sync(forms)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    for name, digest in ((GRAPH, form.graph), (WEIGHTS, form.weights)):
        if form.graph:
            verify(final / name, digest)  # reads what was written once more, and stamps it
    return form


def made(artifact: Path, folder: Path) -> Form:
    """A form in this folder; where there can be none, the folder is empty."""
    form = Form("", "", prepack=True, quick=False, packed_ms=0.0, unpacked_ms=0.0, place=str(folder))
    try:
        convert(artifact, folder)
        form = compare(artifact, form)
        for name in (GRAPH, WEIGHTS):
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
        return msgspec.structs.replace(form, graph=digest_of(folder / GRAPH), weights=digest_of(folder / WEIGHTS))
    except OSError:
        raise
    except Exception as error:  # whatever the engine raises for a model that it cannot write
        text = error.message if isinstance(error, HeadraceError) else (str(error).splitlines() or [""])[0][:300]
        for name in (GRAPH, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        return msgspec.structs.replace(form, refused=text or type(error).__name__)


def make_room(forms: Path, max_bytes: int, size: int) -> None:
    """Remove the forms that were used longest ago until `size` more bytes fit. Processes that map them keep them."""
    entries = []
    for record in forms.glob(f"*/{RECORD}"):
        with contextlib.suppress(OSError):
            whole = sum(file.stat().st_size for file in record.parent.iterdir())
            entries.append((record.stat().st_mtime, whole, record.parent))
    total = sum(whole for _, whole, _ in entries)
    for _, whole, place in sorted(entries):
        if total + size <= max_bytes:
            return
        shutil.rmtree(place, ignore_errors=True)
        total -= whole
    if total + size > max_bytes:
        raise Unprocessable(f"its form needs {size} bytes, more than all forms may take ({max_bytes})")


def leave_with_node() -> None:
    """End at the end of standard input: the node has gone. What is half made is swept away later."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(19)
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=FormSpec)
    threading.Thread(target=leave_with_node, daemon=True).start()
    events = Events()
    try:
        form = make(spec)
    except (HeadraceError, OSError) as error:
        events.send(ProcessEvent("failed", detail=str(error)))
        return 3
    events.send(ProcessEvent("ready", detail=form.refused))
    return 0


if __name__ == "__main__":
    sys.exit(main())
