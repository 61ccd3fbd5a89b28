"""Has serving forms made of the artifacts that replicas load here: one at a time, in the background, once each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from pathlib import Path

import msgspec

from headrace.core.forms import RECORD, folder_of
from headrace.core.process import engine_environment
from headrace.core.specs import FormSpec, ProcessEvent, ServedVersion
from headrace.deploy.child import Child

log = logging.getLogger("headrace.deploy.forms")
MODULE = "headrace.server.form"
LEAST_BYTES = 8 << 20
"""A smaller artifact is loaded as quickly as its form."""


class Forms:
    """The node's forms.

    Args:
        folder: where they are kept.
        max_bytes: of all together; 0: none are made or used.
        logs: folder of the processes' logs.
    """

    def __init__(self, folder: Path, max_bytes: int, logs: Path) -> None:
        self.folder = str(folder) if max_bytes else ""
        self._path = folder
        self._max_bytes = max_bytes
        self._logs = logs
        self._waiting: deque[FormSpec] = deque()
        self._asked: set[str] = set()
        self._child: Child | None = None
        self._closed = False

    def want(self, served: ServedVersion) -> None:
        """A replica has loaded this version: the next one shall find a form."""
        if not self._max_bytes or served.engine != "onnx" or served.digest in self._asked:
            return
        with contextlib.suppress(OSError):
            large = Path(served.artifact).stat().st_size >= LEAST_BYTES
            if large and not (folder_of(self._path, served.digest) / RECORD).exists():
                self._asked.add(served.digest)
                self._waiting.append(FormSpec(served.artifact, served.digest, self.folder, self._max_bytes))
                self._next()

    def _next(self) -> None:
        if self._child is not None or self._closed or not self._waiting:
            return
        spec = self._waiting.popleft()

        def line(text: bytes) -> None:
            event = msgspec.json.decode(text, type=ProcessEvent)
            if event.state == "failed" or event.detail:
                log.warning("the artifact %s has no serving form: %s", spec.digest[:12], event.detail)

        def ended(_: int) -> None:
            self._asked.discard(spec.digest)
            self._child = None
            self._next()

        self._child = Child("form", MODULE, spec, self._logs, line, ended, engine_environment(1))

    @property
    def idle(self) -> bool:
        """None is being made, none waits to be."""
        return self._child is None and not self._waiting

    async def close(self) -> None:
        """End what is under way; what is half made is swept away by the next."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.exited.wait(), 5.0)
