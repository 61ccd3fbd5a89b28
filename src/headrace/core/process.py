"""How a child process of the node speaks with it: event lines out, a stop by SIGTERM or the end of standard input."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

import msgspec

from headrace.core.logs import configure


def engine_environment(threads: int) -> dict[str, str]:
    """Environment of a process that runs a model.

    The numeric libraries start a thread per core when they are loaded, with a buffer each, unless told otherwise
    before. Two start one in the background for other ends: onnxruntime to send telemetry, which nobody asked for, and
    the allocator of Arrow, which scikit-learn imports where it is installed. A process with threads cannot be forked.
    """
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**limits, "ORT_DISABLE_TELEMETRY": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


class Events:
    """Event lines on the real standard output. Whatever else prints goes to standard error from here on: a model
    that prints must not garble the protocol."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        configure(os.environ.get("HEADRACE_LOG_LEVEL", "info"))

    def send(self, event: msgspec.Struct) -> None:
        """Write one event; a node that has gone is no error here, the end of standard input tells it."""
        try:
            self._file.write(msgspec.json.encode(event) + b"\n")
        except OSError:
            logging.getLogger("headrace.process").warning("the node does not listen")


def watch_stop(
    loop: asyncio.AbstractEventLoop, on_line: Callable[[bytes], object] | None = None, with_parent: bool = True
) -> asyncio.Event:
    """An event that is set at SIGTERM or, with the parent, when standard input ends. `on_line` gets the lines that come
    before that."""
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if with_parent:
        watch_input(loop, stop.set, on_line)
    return stop


def watch_input(
    loop: asyncio.AbstractEventLoop, ended: Callable[[], object], on_line: Callable[[bytes], object] | None = None
) -> None:
    """Have the loop call `ended` when standard input ends: whoever held the other end is gone; `on_line` for each line
    until then."""

    def wait_for_end() -> None:
        rest: list[bytes] = []
        with contextlib.suppress(RuntimeError):  # the loop is closed: it ended first
            while data := os.read(sys.stdin.fileno(), 1 << 16):
                if on_line is None:
                    continue
                *lines, last = data.split(b"\n")
                for line in lines:
                    loop.call_soon_threadsafe(on_line, b"".join((*rest, line)))
                    rest.clear()
                rest.append(last)
            loop.call_soon_threadsafe(ended)

    # A thread, not a reader on the loop: standard input may be a file, which an event loop cannot watch.
    threading.Thread(target=wait_for_end, name="stdin", daemon=True).start()
