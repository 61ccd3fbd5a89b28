"""Look into an artifact in a process of its own: ``python -m headrace.server.examine``.

One JSON request a line on standard input, one JSON reply a line on standard output, until the input ends. The artifact
is loaded, its signature read, and it is run once: what crashes, crashes here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from headrace.core.errors import HeadraceError, Unprocessable
from headrace.core.schema import Signature
from headrace.core.specs import Examination, ExaminationRequest, Fault
from headrace.server.engines.load import load
from headrace.server.engines.port import Array, example


def examine(request: ExaminationRequest) -> Examination:
    """Load, read, run once."""
    try:
        loaded = load(request.engine, Path(request.path), request.options, request.signature, 1)
        signature, options = loaded.engine.signature, loaded.options
        warm_up(loaded.engine.run, signature)
        loaded.engine.close()
    except HeadraceError as error:
        return Examination(fault=Fault(error.message, error.field, error.hint))
    return Examination(signature, options)


def warm_up(run: Callable[[list[Array]], object], signature: Signature) -> None:
    """Run on an example; a model that cannot is refused with what it said. Raises HeadraceError."""
    try:
        run(example(signature))
    except HeadraceError:
        raise
    except Exception as error:  # whatever the model raises
        text = (str(error).strip().splitlines() or [""])[0][:300]
        raise Unprocessable(f"the model fails at warm-up: {type(error).__name__}: {text}", field="artifact") from error


def main() -> None:
    """Entry point of the process."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a model that prints must not garble the replies
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=ExaminationRequest)
        replies.write(msgspec.json.encode(examine(request)) + b"\n")


if __name__ == "__main__":
    main()
