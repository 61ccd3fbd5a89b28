"""The use cases of artifacts: taking them in, having them here, and removing what nobody needs."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from headrace.controlplane import changes
from headrace.controlplane.changes import Record
from headrace.controlplane.store import Store
from headrace.core import resources as r
from headrace.core.database import now
from headrace.core.errors import Conflict, HeadraceError, InvalidInput, NotFound, TooLarge, Unavailable
from headrace.deploy.pulls import Pulls
from headrace.registry import inventory
from headrace.registry.artifacts import ArtifactStore, Stored, check_digest
from headrace.registry.cache import Cache
from headrace.registry.uploads import About, Upload, Uploads, disk

log = logging.getLogger("headrace.controlplane.artifacts")
WRITE_BYTES = 1 << 20
"""What came is written when there is so much of it."""
PART_MAX = 64 << 20
"""Bytes of one part of an upload."""
REMOVAL_S = 30.0
"""How long a put waits for the removal of the same artifact."""
UPLOAD_AGE_S = 24 * 3600.0
"""An upload that got nothing for so long is given up."""
TIDY_S = 3600.0
"""Pause between two collections."""
PLATFORM = "platform"
"""The actor of collections that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Near:
    """The node's cache, where the store is elsewhere."""

    pulls: Pulls
    cache: Cache


class Artifacts:
    """The use cases.

    Args:
        db: the control plane's store.
        store: where artifacts are kept.
        uploads: those on their way in.
        grace_s: how long an artifact that nobody needs is kept after it was last put or asked for.
        near: for a store elsewhere.
    """

    def __init__(self, db: Store, store: ArtifactStore, uploads: Uploads, grace_s: float, near: Near | None) -> None:
        self.store = store
        self.uploads = uploads
        self.grace_s = grace_s
        self._db = db
        self._near = near
        self._busy: Counter[str] = Counter()
        """Digests that are just being put, or made a version of."""
        self._collecting = asyncio.Lock()

    @property
    def size_max(self) -> int:
        """Bytes that an artifact may have."""
        return self.uploads.size_max

    # ------------------------------------------------------------------------------------------------ having them
    async def size(self, digest: str) -> int | None:
        """Bytes of a stored artifact, which from now on stays for the grace period; None when it is not there."""
        if await self.store.size(check_digest(digest)) is None:
            return None
        await self._keep(digest)
        return await self.store.size(digest)  # it may just have been removed

    def path(self, digest: str) -> Path | None:
        """Its file on every node; None where each node has to pull it."""
        return self.store.path(digest)

    @asynccontextmanager
    async def using(self, digest: str) -> AsyncIterator[int]:
        """A stored artifact that stays for the length of the block; its bytes in number. Raises NotFound."""
        with self._uncollected(digest):
            size = await self.size(digest)
            if size is None:
                hint = "send it first: PUT /api/v1/artifacts/{digest}, or POST /api/v1/uploads"
                raise NotFound(f"digest: no artifact {digest[:12]}...", field="digest", hint=hint)
            yield size

    @contextmanager
    def _uncollected(self, digest: str) -> Iterator[None]:
        self._busy[digest] += 1
        try:
            yield
        finally:
            self._busy[digest] -= 1
            self._busy += Counter()  # those at zero leave

    @asynccontextmanager
    async def local(self, digest: str, size: int) -> AsyncIterator[Path]:
        """A stored artifact as a file of this machine, for the length of the block.

        Raises:
            Unprocessable, Unavailable: it cannot be brought here.
        """
        path = self.store.path(digest)
        if path is not None:
            yield path
            return
        assert self._near is not None
        path, held = await self._near.pulls.get(digest, size)
        try:
            yield path
        finally:
            os.close(held)

    async def _keep(self, digest: str) -> None:
        """Have it stay for the grace period. Raises Unavailable."""
        end = time.monotonic() + REMOVAL_S
        while not await self._db.run(lambda c: inventory.touch(c, digest)):
            if time.monotonic() > end:
                raise Unavailable(f"artifact {digest[:12]}... is being removed", field="digest")
            await asyncio.sleep(0.05)

    # ------------------------------------------------------------------------------------------------ taking them in
    async def receive(self, digest: str, length: int | None, body: AsyncIterator[bytes]) -> r.Artifact:
        """Store an artifact that comes in one request. Raises InvalidInput, TooLarge, Unavailable."""
        check_digest(digest)
        if length is not None and length > self.size_max:
            raise TooLarge(f"artifact: {length} bytes, it may have {self.size_max}", field="artifact")
        part = self.uploads.single()
        try:
            async for chunk in _pieces(body):
                await asyncio.to_thread(part.write, chunk)
            found = part.hash.hexdigest()
            if found != digest:
                raise InvalidInput(f"digest: the bytes that came have SHA-256 {found}", field="digest")
            await asyncio.to_thread(part.sync)
            await self.put(digest, part.path)
        finally:
            part.close()
            part.path.unlink(missing_ok=True)
        return r.Artifact(digest, part.offset)

    def begin(self, owner: int, body: r.UploadCreate) -> r.Upload:
        """The owner's upload of an artifact: the one in progress, or a new one."""
        return shown(self.uploads.begin(owner, body.digest, body.size_bytes).about)

    def show(self, owner: int, id_: str) -> r.Upload:
        """An upload as it stands. Raises NotFound."""
        return shown(self.uploads.get(owner, id_).about)

    def list(self, owner: int) -> list[r.Upload]:
        """An owner's uploads."""
        return [shown(about) for about in self.uploads.of(owner)]

    async def append(self, owner: int, id_: str, content_range: str, body: AsyncIterator[bytes]) -> r.Upload:
        """Take the next part of an upload, whole or not at all.

        Args:
            owner: index of the tenant.
            id_: the upload.
            content_range: ``bytes FIRST-LAST/SIZE``.
            body: the part's bytes.

        Raises:
            InvalidInput: the range makes no sense, or is not the body's.
            Conflict: it does not begin at the upload's offset.
            NotFound, TooLarge, Unavailable.
        """
        upload = self.uploads.get(owner, id_)
        start, end = parse_range(content_range, upload.about.size_bytes)
        async with upload.lock:
            self.uploads.get(owner, id_)  # it may have been finished or cancelled while we waited
            if start != upload.about.offset:
                raise Conflict(
                    f"content-range: begins at {start}, the upload stands at {upload.about.offset}",
                    field="content-range",
                    hint="go on at the upload's offset",
                )
            await self._take(upload, end, body)
        return shown(upload.about)

    async def _take(self, upload: Upload, end: int, body: AsyncIterator[bytes]) -> None:
        part = await asyncio.to_thread(self.uploads.part, upload)
        try:
            async for chunk in _pieces(body):
                if part.offset + len(chunk) > end:
                    raise InvalidInput("content-range: the body is longer", field="content-range")
                await asyncio.to_thread(part.write, chunk)
            if part.offset != end:
                raise InvalidInput(f"content-range: the body is {end - part.offset} bytes short", field="content-range")
            await asyncio.to_thread(self.uploads.keep, upload, part)
        finally:
            part.close()

    async def commit(self, owner: int, id_: str) -> r.Artifact:
        """Make a whole upload an artifact.

        Raises:
            Conflict: bytes are missing.
            InvalidInput: the bytes are not the digest's; the upload is then gone.
            NotFound, Unavailable.
        """
        upload = self.uploads.get(owner, id_)
        async with upload.lock:
            self.uploads.get(owner, id_)
            path = await asyncio.to_thread(self.uploads.checked, upload)
            await self.put(upload.about.digest, path)
            self.uploads.remove(id_)
        return r.Artifact(upload.about.digest, upload.about.size_bytes)

    async def cancel(self, owner: int, id_: str) -> r.Upload:
        """Give an upload up."""
        upload = self.uploads.get(owner, id_)
        async with upload.lock:
            self.uploads.remove(id_)
        return shown(upload.about)

    async def put(self, digest: str, path: Path) -> None:
        """Store a file whose digest was checked; it may be gone afterwards."""
        with self._uncollected(digest):
            await self._keep(digest)
            try:
                await self.store.put(digest, path)
            except OSError as error:
                raise disk(error) from None
            if self._near is not None and path.exists():
                # A version of it is likely to be deployed here next.
                await asyncio.to_thread(self._near.cache.adopt, digest, path)

    # ------------------------------------------------------------------------------------------------ removing them
    async def collect(self, dry_run: bool, grace_s: float | None = None) -> r.Collection:
        """Remove what no version needs, no upload brings, and nobody has touched for the grace period."""
        grace_s = self.grace_s if grace_s is None else grace_s
        async with self._collecting:
            # Taken first: who begins to put one after this has touched it after `before`.
            before, moment = now(-grace_s), time.time() - grace_s
            busy = {*self._busy, *self.uploads.digests()}
            stored = {item.digest: item async for item in self.store.list()}
            old = [digest for digest, item in stored.items() if item.stored_at < moment and digest not in busy]

            def choose(c: Connection) -> tuple[list[str], list[str]]:
                lost = inventory.known(c) - stored.keys() - busy  # their puts never came to an end
                chosen = inventory.unneeded(c, [*old, *lost], before)
                if not dry_run:
                    inventory.condemn(c, chosen)
                return chosen, sorted(inventory.references(c).keys() - stored.keys())

            chosen, missing = await self._db.run(choose)
            expired = swept = 0
            if not dry_run:
                await self._finish_removals()
                expired = self.uploads.expire(UPLOAD_AGE_S)
                swept = await self.store.sweep(UPLOAD_AGE_S)
            return _collection(dry_run, stored, chosen, missing, expired, swept)

    async def _finish_removals(self) -> None:
        """Remove what was condemned, now or before a crash."""
        for digest in await self._db.run(inventory.condemned):
            await self.store.delete(digest)
            if self._near is not None:
                await asyncio.to_thread(self._near.cache.drop, digest)
            await self._db.run(partial(inventory.forget, digest=digest))

    async def close(self) -> None:
        """End the pulls that run."""
        if self._near is not None:
            await self._near.pulls.close()

    async def keep_tidy(self) -> None:
        """Collect for ever; one that fails is logged and tried again."""
        while True:
            try:
                await self._tidy()
            except HeadraceError as error:
                log.warning("artifacts are not collected: %s", error.message)
            except Exception:
                log.exception("artifacts are not collected")
            await asyncio.sleep(TIDY_S)

    async def _tidy(self) -> None:
        await self._finish_removals()
        found = await self.collect(False)
        if found.removed:
            record = gc_record(found)
            await self._db.run(lambda c: changes.append(c, PLATFORM, record, "no version needs them"))


def gc_record(found: r.Collection) -> Record:
    """A collection, for the audit."""
    after = {"digests": [item.digest for item in found.removed], "bytes": found.bytes_removed}
    return Record("artifact.gc", "", "artifacts", None, after, changed=bool(found.removed) and not found.dry_run)


def _collection(
    dry_run: bool, stored: dict[str, Stored], chosen: list[str], missing: list[str], expired: int, swept: int
) -> r.Collection:
    removed = [r.Artifact(digest, stored[digest].size_bytes) for digest in chosen if digest in stored]
    total = sum(item.size_bytes for item in removed)
    return r.Collection(dry_run, removed, total, len(stored) - len(removed), missing, expired, swept)


def shown(about: About) -> r.Upload:
    """An upload as the API shows it."""
    ends = now(about.touched_at + UPLOAD_AGE_S - time.time())
    return r.Upload(about.id, about.digest, about.size_bytes, about.offset, PART_MAX, ends)


def parse_range(text: str, size: int) -> tuple[int, int]:
    """First byte and end of ``bytes FIRST-LAST/SIZE``. Raises InvalidInput, TooLarge."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    first, _, last = span.partition("-")
    numbers = (first, last, total)
    if unit != "bytes" or not all(n.isascii() and n.isdigit() and len(n) < 16 for n in numbers):
        raise InvalidInput(f"content-range: {text[:80]!r}, expected bytes FIRST-LAST/SIZE", field="content-range")
    start, end, given = int(first), int(last) + 1, int(total)
    if given != size or not start < end <= size:
        raise InvalidInput(f"content-range: {text}, the upload has {size} bytes", field="content-range")
    if end - start > PART_MAX:
        raise TooLarge(f"content-range: a part may have {PART_MAX} bytes", field="content-range")
    return start, end


async def _pieces(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What comes, in pieces worth a thread's while: hashing, writing and syncing gigabytes must not hold up the loop,
    which also serves the routers."""
    piece = bytearray()
    async for chunk in body:
        piece += chunk
        if len(piece) >= WRITE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
