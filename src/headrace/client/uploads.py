"""How an artifact's bytes reach the platform: in one request where they are few, else in parts that outlive whatever
cuts them off."""

from __future__ import annotations

from pathlib import Path

from headrace.client import calls
from headrace.client.steps import Answer, Flow, Memory, Progress, Send, patiently, request
from headrace.core import resources as r
from headrace.core.errors import Conflict, NotFound

PART_BYTES = 16 << 20
PART_S, COMMIT_S = 600.0, 3600.0
"""How long one part, and the platform's own work on the whole, may take."""
SETBACKS_MAX = 20
"""Times that a part may turn out to be another one's turn: somebody else sends the same file."""


def upload(memory: Memory, path: Path, digest: str, progress: Progress | None, force: bool = False) -> Flow[None]:
    """Send what the platform does not have yet.

    Args:
        memory: the client's.
        path: the file.
        digest: its SHA-256, hex.
        progress: is told of bytes that have arrived, and bytes in all.
        force: send it though the platform has it.

    Raises:
        InvalidInput, TooLarge, Forbidden, Unavailable, Unreachable.
    """
    size = path.stat().st_size
    if not force and (yield from _is_there(memory, digest)):
        if progress is not None:
            progress(size, size)
    elif size <= PART_BYTES:
        headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        target = f"/api/v1/artifacts/{digest}"
        send = Send("control", "PUT", target, headers=headers, file=path, progress=progress, timeout_s=COMMIT_S)
        answer = yield from patiently(memory, send, True)
        calls.read(r.Artifact, answer.status, answer.content)
    else:
        yield from _in_parts(memory, path, digest, progress, force)


def _is_there(memory: Memory, digest: str) -> Flow[bool]:
    known = yield from patiently(memory, Send("control", "HEAD", f"/api/v1/artifacts/{digest}"), True)
    if known.status not in (200, 404):  # a HEAD's reply has no body to say why: this one has
        answer = yield from patiently(memory, Send("control", "GET", "/api/v1/status"), True)
        calls.read(r.Status, answer.status, answer.content)
    return known.status == 200


def _in_parts(memory: Memory, path: Path, digest: str, progress: Progress | None, force: bool) -> Flow[None]:
    """Parts from where the platform's upload of this file stands, whoever sent what is there; then the commit."""
    size, setbacks = path.stat().st_size, 0
    while True:
        found = yield from request(memory, calls.begin_upload(digest, size))
        try:
            while found.offset < size:
                if progress is not None:
                    progress(found.offset, size)
                answer = yield from _part(memory, path, found, progress)
                found = calls.read(r.Upload, answer.status, answer.content)
            commit = Send("control", "POST", f"/api/v1/uploads/{found.id}/commit", timeout_s=COMMIT_S)
            answer = yield from patiently(memory, commit, True)
            calls.read(r.Artifact, answer.status, answer.content)
            return
        except (Conflict, NotFound):
            # The answer to a part, or to the commit, was lost and it was sent twice; or two send the same file.
            setbacks += 1
            if setbacks > SETBACKS_MAX:
                raise
        if not force and (yield from _is_there(memory, digest)):
            return


def _part(memory: Memory, path: Path, found: r.Upload, progress: Progress | None) -> Flow[Answer]:
    start = found.offset
    end = min(start + min(PART_BYTES, found.part_max_bytes), found.size_bytes)
    headers = {
        "content-type": "application/octet-stream",
        "content-length": str(end - start),
        "content-range": f"bytes {start}-{end - 1}/{found.size_bytes}",
    }
    target = f"/api/v1/uploads/{found.id}"
    send = Send("control", "PUT", target, {}, None, headers, path, (start, end), progress, PART_S)
    return (yield from patiently(memory, send, True))
