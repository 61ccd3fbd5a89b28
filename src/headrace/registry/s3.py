"""The artifact store in S3-compatible storage, through obstore (Rust's object_store).

An artifact is one object, uploaded in parts and visible when the last is confirmed; every part carries its SHA-256,
which the server checks. Every request has a time limit and is repeated a few times, with growing pauses, where the
server is away or answers 5xx.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from headrace.core.errors import NotFound, Unavailable
from headrace.core.storage import S3Spec
from headrace.registry.artifacts import Stored, key_of
from headrace.registry.s3_leftovers import abort_old

if TYPE_CHECKING:
    from obstore.store import S3Config

T = TypeVar("T")
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 4
REQUEST_S = 60.0
"""Longest that one request, for one part, may take."""
RETRIES = 5
RETRY_S = 30.0
"""How long a request is repeated."""


class S3Store:
    """Implements `ArtifactStore`.

    Args:
        spec: bucket and credentials.
        request_s: longest that one request may take.
        retry_s: how long one is repeated.
    """

    def __init__(self, spec: S3Spec, request_s: float = REQUEST_S, retry_s: float = RETRY_S) -> None:
        self._spec = spec
        self._bucket = Bucket(
            spec.bucket,
            prefix=spec.prefix or None,
            client_options={
                "allow_http": spec.endpoint.startswith("http://"),
                "timeout": timedelta(seconds=request_s),
                "connect_timeout": timedelta(seconds=5),
            },
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": timedelta(seconds=retry_s),
                "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
            },
            config=_config(spec),
        )

    def path(self, digest: str) -> Path | None:
        """See `ArtifactStore.path`."""
        return None

    async def size(self, digest: str) -> int | None:
        """See `ArtifactStore.size`."""
        try:
            return int((await self._ask(obstore.head_async(self._bucket, key_of(digest))))["size"])
        except FileNotFoundError:
            return None

    async def put(self, digest: str, file: Path) -> None:
        """See `ArtifactStore.put`."""
        given = obstore.put_async(
            self._bucket, key_of(digest), file, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
        )
        await self._ask(given)

    async def read(self, digest: str, start: int = 0) -> AsyncIterator[bytes]:
        """See `ArtifactStore.read`. Some parts are on their way while one is used."""
        size = await self.size(digest)
        if size is None:
            raise NotFound(f"digest: no artifact {digest[:12]}... in the store", field="digest")
        ahead: list[asyncio.Future[bytes]] = []
        try:
            while start < size or ahead:
                while start < size and len(ahead) < PARTS_AT_ONCE:
                    ahead.append(asyncio.ensure_future(self._part(digest, start, min(start + PART_BYTES, size))))
                    start += PART_BYTES
                yield await ahead.pop(0)
        finally:
            for part in ahead:
                part.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _part(self, digest: str, start: int, end: int) -> bytes:
        try:
            return bytes(await self._ask(obstore.get_range_async(self._bucket, key_of(digest), start=start, end=end)))
        except FileNotFoundError:
            raise NotFound(f"digest: artifact {digest[:12]}... has left the store", field="digest") from None

    async def delete(self, digest: str) -> None:
        """See `ArtifactStore.delete`."""
        with contextlib.suppress(FileNotFoundError):
            await self._ask(obstore.delete_async(self._bucket, key_of(digest)))

    async def list(self) -> AsyncIterator[Stored]:
        """See `ArtifactStore.list`."""
        pages = obstore.list(self._bucket, "sha256")
        while True:
            try:
                page = await self._ask(pages.__anext__())
            except StopAsyncIteration:
                return
            for item in page:
                digest = item["path"].rpartition("/")[2]
                if item["path"] == f"sha256/{digest[:2]}/{digest}" and len(digest) == 64:
                    yield Stored(digest, item["size"], item["last_modified"].timestamp())

    async def sweep(self, age_s: float) -> int:
        """See `ArtifactStore.sweep`: multi-part uploads that were begun and never completed or aborted."""
        return await asyncio.to_thread(abort_old, self._spec, age_s)

    async def _ask(self, request: Awaitable[T]) -> T:
        """Raises Unavailable with what the storage said, shortened: its texts hold whole XML documents."""
        try:
            return await request
        except FileNotFoundError:
            raise
        except (BaseError, OSError, ValueError) as error:
            why = reason(error)
            raise Unavailable(f"the artifact store s3://{self._spec.bucket} does not answer: {why}") from None


def reason(error: Exception) -> str:
    """The first line of an error, without the library's debugging."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"


def _config(spec: S3Spec) -> S3Config:
    config: S3Config = {"region": spec.region or "us-east-1", "checksum_algorithm": "SHA256"}
    if spec.endpoint:
        config["endpoint"] = spec.endpoint
    if spec.access_key:
        config["access_key_id"] = spec.access_key
        config["secret_access_key"] = spec.secret_key
    if spec.session_token:
        config["session_token"] = spec.session_token
    return config
