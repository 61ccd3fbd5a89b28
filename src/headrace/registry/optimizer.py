"""Has a model optimised in a process of its own, with a limit of time; that of memory the process sets itself."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from headrace.core.errors import Unprocessable
from headrace.core.optimization import OptimizationReport
from headrace.core.process import engine_environment
from headrace.core.specs import OptimizationAnswer, OptimizationRequest
from headrace.registry.examiner import LINE_MAX, death, end, next_line

TIMEOUT_S = 1800.0
"""How long an optimisation may take."""
COMMAND = (sys.executable, "-m", "headrace.server.optimize")


async def optimize(
    request: OptimizationRequest,
    progress: Callable[[str], None],
    command: tuple[str, ...] = COMMAND,
    hidden: Collection[str] = (),
    timeout_s: float = TIMEOUT_S,
) -> OptimizationReport:
    """Optimise a model; the process ends with this, however it ends, and sees nothing of `hidden` in its environment.

    Raises:
        Unprocessable: the rows are not of the model, or the process died or took too long.
    """
    pipe: Any = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=pipe,
        stdout=pipe,
        limit=LINE_MAX,
        start_new_session=True,
        env={**{n: v for n, v in os.environ.items() if n not in hidden}, **engine_environment(1)},
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            line = await next_line(process, deadline - asyncio.get_running_loop().time())
            if not line.endswith(b"\n"):
                raise Unprocessable(f"the optimisation's process died ({await death(process)})")
            found = msgspec.json.decode(line, type=OptimizationAnswer)
            if found.error is not None:
                raise Unprocessable(found.error.message, field=found.error.field, hint=found.error.hint)
            if found.report is not None:
                return found.report
            progress(found.progress)
    except TimeoutError:
        raise Unprocessable(f"the optimisation took longer than {timeout_s:g} s") from None
    except (ConnectionError, ValueError):
        raise Unprocessable(f"the optimisation's process died ({await death(process)})") from None
    finally:
        await end(process)
