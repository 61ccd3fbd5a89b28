"""Has artifacts brought to this node: one process per artifact, however many wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace.core.errors import HeadraceError, Unavailable, Unprocessable
from headrace.core.storage import PullEvent, PullSpec, S3Spec
from headrace.core.verified import hold
from headrace.deploy.child import Child

MODULE = "headrace.registry.pull"
TRIES = 3
"""Pulls that succeed and whose artifact is evicted before it is taken into use; more mean that something is wrong."""


@dataclass(slots=True)
class Pull:
    """One that runs, and what it said last."""

    child: Child
    size: int
    said: PullEvent


class Pulls:
    """The artifacts' way to this node.

    Args:
        source: where they are stored.
        folder: the node's cache.
        cache_max_bytes: its bound.
        logs: folder of the processes' logs.
        changed: called when there is news of one.
    """

    def __init__(
        self,
        source: S3Spec,
        folder: Path,
        cache_max_bytes: int,
        logs: Path,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._folder = folder
        self._cache_max_bytes = cache_max_bytes
        self._logs = logs
        self._changed = changed
        self._running: dict[str, Pull] = {}

    async def get(self, digest: str, size: int) -> tuple[Path, int]:
        """An artifact's path, and a descriptor that keeps it from eviction until it is closed.

        Raises:
            Unprocessable: it cannot be had: damaged, or no room.
            Unavailable: the store does not answer.
        """
        path = self._folder / digest
        for _ in range(TRIES):
            # In a thread: the disk may be slow, and the loop serves all others.
            held = await asyncio.to_thread(hold, path, digest)
            if held is not None:
                return path, held
            await self._pull(digest, size)
        raise Unprocessable("the artifact was evicted from the node's cache before it was used", field="digest")

    def progress(self, digest: str) -> str:
        """How far an artifact on its way has come, for people; empty for one that is not."""
        pull = self._running.get(digest)
        if pull is None:
            return ""
        return f"pulling the artifact: {pull.said.bytes_done / 1e6:.0f} of {pull.size / 1e6:.0f} MB"

    async def _pull(self, digest: str, size: int) -> None:
        pull = self._running.get(digest) or self._start(digest, size)
        await pull.child.exited.wait()
        if pull.said.state != "ready":
            raise self._error(pull)

    def _start(self, digest: str, size: int) -> Pull:
        def line(text: bytes) -> None:
            pull.said = msgspec.json.decode(text, type=PullEvent)
            self._changed()

        def ended(_: int) -> None:
            self._running.pop(digest, None)

        spec = PullSpec(self._source, digest, size, str(self._folder), self._cache_max_bytes)
        pull = Pull(Child("pull", MODULE, spec, self._logs, line, ended), size, PullEvent("pulling"))
        self._running[digest] = pull
        return pull

    @staticmethod
    def _error(pull: Pull) -> HeadraceError:
        if pull.said.state == "failed":
            return Unprocessable(pull.said.detail, field="digest")
        why = pull.said.detail or f"the pull was cut off: {pull.child.log_tail() or 'killed'}"
        return Unavailable(why, field="digest")

    async def close(self) -> None:
        """End what runs; what is half pulled stays for the next time."""
        for pull in list(self._running.values()):
            pull.child.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pull.child.exited.wait(), 5.0)
