"""Examines artifacts before they are registered, apart from the control plane: loading one may execute its code.

``python -m headrace.server.examine`` reads one request per line of standard input and answers each with a line:

    {"engine", "path", "file_name", "options" | null, "signature" | null, "parts", "golden" | null, "sample" | null}
    -> {"signature", "options", "tests", "reference"}   what the model takes and gives, the options it was loaded with,
                                           how the signature tests in `golden` went, and statistics of the `sample`
    -> {"error": {"message", "field", "hint"}}

A model that takes the process down gives no answer at all; whoever asked sees the end of the output.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from headrace.core.errors import HeadraceError
from headrace.core.golden import Golden, GoldenResult
from headrace.core.reference import Reference
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, SampleFile, ServedPart
from headrace.server.engines.artifact import reason
from headrace.server.engines.load import load
from headrace.server.engines.port import Engine, warm_inputs
from headrace.server.golden import run_golden

_EXAMPLE = 'give its inputs an example in pipeline.toml: example = ..., or example_file = "FILE" for BYTES'
_SIZES = "if it needs larger inputs than the example's, give a signature that fixes the free dimensions"


class Examine(msgspec.Struct, frozen=True):
    """A request."""

    engine: str
    path: str
    file_name: str = ""
    """What the client called the file; only for messages, the format goes by content."""
    options: EngineOptions | None = None
    """None for the engine's defaults."""
    signature: Signature | None = None
    """Checked against the model's; None to read it out of the model."""
    parts: tuple[ServedPart, ...] = ()
    """Of a pipeline, the versions that it runs."""
    golden: Golden | None = None
    """Signature tests."""
    sample: SampleFile | None = None
    """Rows to compute reference statistics of."""


class Examined(msgspec.Struct, frozen=True):
    """The answer for an artifact that loads and runs."""

    signature: Signature
    options: EngineOptions
    tests: tuple[GoldenResult, ...] = ()
    reference: Reference | None = None


class Fault(msgspec.Struct, frozen=True):
    """Why an artifact is refused."""

    message: str
    field: str | None = None
    hint: str | None = None


class Refused(msgspec.Struct, frozen=True):
    """The answer for any other."""

    error: Fault


def examine(request: Examine) -> Examined | Refused:
    """Load, run once on an example, close."""
    path = Path(request.path)
    try:
        loaded = load(request.engine, path, request.options, request.signature, parts=request.parts)
    except HeadraceError as error:
        name = request.file_name
        return Refused(Fault(f"{name}: {error.message}" if name else error.message, error.field, error.hint))
    engine = loaded.engine
    try:
        engine.run(warm_inputs(engine))
        tests = run_golden(engine, loaded.options, request.golden, path) if request.golden is not None else ()
        reference = measured(engine, loaded.options, request.sample, path)
        if isinstance(reference, Fault):
            return Refused(reference)
        return Examined(engine.signature, loaded.options, tests, reference)
    except (Exception, SystemExit) as error:  # whatever the model raises
        text = error.message if isinstance(error, HeadraceError) else reason(error, path)
        name = request.file_name or "the model"
        free = any(-1 in spec.shape[1:] for spec in engine.signature.inputs)
        hint = _EXAMPLE if request.engine == "pipeline" else _SIZES if free else None
        return Refused(Fault(f"{name}: loads, and fails on its first run: {text}", "digest", hint))
    finally:
        engine.close()


def measured(engine: Engine, options: EngineOptions, sample: SampleFile | None, path: Path) -> Reference | Fault | None:
    """Reference statistics of a sample, where one is given; or why there are none."""
    if sample is None:
        return None
    # Imported when first needed: most examinations have no sample, and DuckDB is large.
    from headrace.server import measuring, samples

    try:
        rows = samples.read(Path(sample.path), engine.signature, sample.label, "reference")
        return measuring.measure(engine, options, rows)
    except HeadraceError as error:
        return Fault(error.message, error.field or "reference", error.hint)
    except Exception as error:  # whatever the model raises
        return Fault(f"reference: the model fails on it: {reason(error, path)}", "reference")


def answer(line: bytes) -> Examined | Refused:
    """The answer to a line of standard input."""
    try:
        request = msgspec.json.decode(line, type=Examine)
    except msgspec.DecodeError as error:
        return Refused(Fault(f"not a request: {error}"))
    return examine(request)


def main() -> int:
    """Entry point of the process; ends with its standard input."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a model prints must not stand between the replies
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # nor may it read the next request
    os.close(nothing)
    for line in requests:
        replies.write(msgspec.json.encode(answer(line)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
