"""The artifact store's port, asked of every adapter: a folder, and a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from headrace.core.errors import InvalidInput, NotFound, Unavailable
from headrace.core.storage import S3Spec
from headrace.registry import s3_leftovers
from headrace.registry.artifacts import ArtifactStore
from headrace.registry.folder import FolderStore
from headrace.registry.s3 import PART_BYTES, S3Store
from tests.s3 import Proxy, Server, proxy, s3_server

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as started:
        yield started


@pytest.fixture
def bucket(server: Server) -> S3Spec:
    return server.bucket(f"b{os.urandom(4).hex()}")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "artifacts")
    return S3Store(request.getfixturevalue("bucket"))


@pytest.fixture
def faulty(server: Server, bucket: S3Spec) -> Iterator[tuple[Proxy, S3Store]]:
    """A store behind a proxy that misbehaves on request."""
    with proxy(server.endpoint) as between:
        yield between, S3Store(msgspec.structs.replace(bucket, endpoint=between.endpoint), request_s=10, retry_s=20)


def made(folder: Path, size: int, seed: int = 0) -> tuple[str, bytes, Path]:
    """A file of random bytes: its digest, its content, where it lies."""
    content = random.Random(f"{size} {seed}").randbytes(size)
    path = folder / f"made-{size}-{seed}"
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest(), content, path


async def whole(store: ArtifactStore, digest: str, start: int = 0) -> bytes:
    return b"".join([chunk async for chunk in store.read(digest, start)])


async def digests(store: ArtifactStore) -> set[str]:
    return {item.digest async for item in store.list()}


@pytest.mark.parametrize("size", [1, 70_000, 2 * PART_BYTES + 12_345])
def test_what_is_put_is_read_back_from_anywhere(store: ArtifactStore, tmp_path: Path, size: int) -> None:
    digest, content, path = made(tmp_path, size)

    async def run() -> None:
        assert await store.size(digest) is None
        await store.put(digest, path)
        assert await store.size(digest) == size
        assert await whole(store, digest) == content
        for start in {size // 2, size - 1, size}:
            assert await whole(store, digest, start) == content[start:]
        here = store.path(digest)
        assert here is None or here.read_bytes() == content

    asyncio.run(run())


def test_it_lists_what_it_has_and_deletes_it(store: ArtifactStore, tmp_path: Path) -> None:
    async def run() -> None:
        assert await digests(store) == set()
        some = [made(tmp_path, 1000, seed) for seed in range(5)]
        for digest, _, path in some:
            await store.put(digest, path)
        listed = [item async for item in store.list()]
        assert {item.digest for item in listed} == {digest for digest, _, _ in some}
        assert {item.size_bytes for item in listed} == {1000}
        gone = some[2][0]
        await store.delete(gone)
        await store.delete(gone)
        assert await store.size(gone) is None
        assert gone not in await digests(store)
        with pytest.raises(NotFound):
            await whole(store, gone)

    asyncio.run(run())


def test_a_second_put_replaces_what_was_damaged(store: ArtifactStore, tmp_path: Path) -> None:
    digest, content, path = made(tmp_path, 5000)
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"x" * 5000)

    async def run() -> None:
        await store.put(digest, wrong)  # as if it had rotted
        await store.put(digest, path)
        assert await whole(store, digest) == content

    asyncio.run(run())


def test_a_digest_that_is_none_reaches_no_file(store: ArtifactStore) -> None:
    for bad in ("../../etc/passwd", "0" * 63, "A" * 64, ""):
        with pytest.raises(InvalidInput) as refused:
            asyncio.run(store.size(bad))
        assert refused.value.field == "digest"


def test_puts_of_the_same_at_the_same_time_leave_it_whole(store: ArtifactStore, tmp_path: Path) -> None:
    copies = []
    for k in range(4):
        (tmp_path / str(k)).mkdir()
        copies.append(made(tmp_path / str(k), 300_000))
    digest, content, _ = copies[0]

    async def run() -> None:
        await asyncio.gather(*(store.put(digest, path) for _, _, path in copies))
        assert await whole(store, digest) == content
        assert await digests(store) == {digest}

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------ faults of a server
def test_503s_are_waited_out(faulty: tuple[Proxy, S3Store], tmp_path: Path) -> None:
    between, store = faulty
    digest, content, path = made(tmp_path, PART_BYTES + 1)

    async def run() -> None:
        between.faults.refuse = 3
        await store.put(digest, path)
        between.faults.refuse = 3
        assert await whole(store, digest) == content

    asyncio.run(run())


def test_an_answer_that_is_cut_off_is_asked_for_again(faulty: tuple[Proxy, S3Store], tmp_path: Path) -> None:
    between, store = faulty
    digest, content, path = made(tmp_path, 2 * PART_BYTES)

    async def run() -> None:
        await store.put(digest, path)
        between.faults.cut_after = 1 << 20
        assert await whole(store, digest) == content
        assert between.faults.cut_after == 0  # it was cut

    asyncio.run(run())


def test_a_server_that_is_away_is_an_error_within_the_bound(server: Server, bucket: S3Spec, tmp_path: Path) -> None:
    digest, _, path = made(tmp_path, 1000)
    with proxy(server.endpoint) as between:
        between.faults.down = True
        store = S3Store(msgspec.structs.replace(bucket, endpoint=between.endpoint), request_s=5, retry_s=1)
        for work in (store.size(digest), store.put(digest, path), whole(store, digest), digests(store)):
            with pytest.raises(Unavailable, match="does not answer"):
                asyncio.run(asyncio.wait_for(work, 60))
        with pytest.raises(Unavailable):
            asyncio.run(store.sweep(0.0))


def test_a_put_that_is_cut_off_shows_nothing_and_its_parts_are_swept(server: Server, tmp_path: Path) -> None:
    spec = server.bucket(f"b{os.urandom(4).hex()}")
    digest, content, path = made(tmp_path, 4 * PART_BYTES)
    store = S3Store(spec)

    async def run() -> None:
        _begin(spec, digest)  # as a process that was killed leaves it
        assert await store.size(digest) is None
        assert await digests(store) == set()
        assert await store.sweep(3600.0) == 0  # it may still be on its way
        assert await store.sweep(-3600.0) == 1
        assert await store.sweep(-3600.0) == 0
        await store.put(digest, path)
        assert await whole(store, digest) == content

    asyncio.run(run())


def _begin(spec: S3Spec, digest: str) -> None:
    """Begin a multi-part upload and leave it."""
    path = f"/{spec.bucket}/{spec.prefix}/sha256/{digest[:2]}/{digest}"
    headers = s3_leftovers.sign(spec, "us-east-1", "POST", spec.endpoint.removeprefix("http://"), path, "uploads=")
    assert httpx.post(f"{spec.endpoint}{path}?uploads=", headers=headers).status_code == 200


def test_a_wrong_secret_is_refused_without_showing_it(bucket: S3Spec) -> None:
    store = S3Store(msgspec.structs.replace(bucket, secret_key="a-wrong-secret"), retry_s=1)
    with pytest.raises(Unavailable) as refused:
        asyncio.run(store.size("0" * 64))
    assert "a-wrong-secret" not in str(refused.value)
    assert "a-wrong-secret" not in repr(msgspec.structs.replace(bucket, secret_key="a-wrong-secret"))
