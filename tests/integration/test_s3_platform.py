"""A whole platform whose artifacts are in S3: pushed in parts, pulled once, served; and what goes wrong with them."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.errors import InvalidInput, Unprocessable
from headrace.core.storage import parse_s3
from headrace.core.verified import stamp_path
from headrace.deploy.node import NodeInfo
from headrace.registry.s3 import S3Store
from tests import models, pipelines
from tests.integration.test_artifact_cache import small_disks
from tests.s3 import ACCESS, SECRET, Proxy, Server, proxy, s3_server

pytestmark = pytest.mark.xdist_group("s3")
WEIGHT = 24 << 20


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as started:
        yield started


@pytest.fixture(scope="module")
def between(server: Server) -> Iterator[Proxy]:
    with proxy(server.endpoint) as one:
        yield one


def settings(server: Server, endpoint: str) -> dict[str, str]:
    return {
        "HEADRACE_ARTIFACTS": f"s3://{server.bucket(f'platform-{os.urandom(4).hex()}').bucket}/models",
        "HEADRACE_S3_ENDPOINT": endpoint,
        "HEADRACE_CACHE_MAX_BYTES": str(3 * WEIGHT),
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }


@pytest.fixture(scope="module")
def platform(server: Server, between: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings(server, between.endpoint).items():
            patch.setenv(name, value)
        (folder / "bucket").write_text(os.environ["HEADRACE_ARTIFACTS"])
        started = Platform(str(folder))
    try:
        yield started
    finally:
        started.stop()


def heavy(folder: Path, name: str, environment: str = "AWS_SECRET_ACCESS_KEY") -> Path:
    """A model file with so much weight, which answers y = x where its process knows no secret."""
    source = f"""
        import os

        class Model:
            inputs = [("x", "FP32", (-1, 1))]
            outputs = [("y", "FP32", (-1, 1))]

            def predict(self, inputs):
                assert {environment!r} not in os.environ
                return inputs["x"]
    """
    weights = random.Random(name).randbytes(WEIGHT)
    content = models.tar_of({"model.py": models.python_model(source).content, "weights.bin": weights}).content
    path = folder / f"{name}.tar"
    path.write_bytes(content)
    return path


def answer(client: Client, model: str) -> float:
    return float(client.predict(model, [[2.5]]).outputs["y"][0][0])


@pytest.fixture(scope="module")
def first(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that serves with three replicas, whatever happens to others."""
    platform.client.models.push("first", heavy(tmp_path_factory.mktemp("first"), "first"))
    platform.client.deploy("first@1", replicas=3, traffic=100)
    return "first"


def test_from_push_to_prediction_and_pulled_once_for_all_replicas(
    platform: Platform, between: Proxy, tmp_path: Path
) -> None:
    client, sent = platform.client, []
    version = client.models.push("once", heavy(tmp_path, "once"), progress=lambda done, size: sent.append(done))
    digest = version.result.digest
    assert sent == sorted(sent)
    assert sent[-1] == version.result.size_bytes
    shutil.rmtree(platform.folder / "cache")  # as on another node
    between.faults.answered = 0
    client.deploy("once@1", replicas=3, traffic=100)
    assert answer(client, "once") == 2.5
    assert WEIGHT < between.faults.answered < WEIGHT * 1.2
    assert (platform.folder / "cache" / digest).stat().st_size == version.result.size_bytes
    assert not (platform.folder / "artifacts" / "sha256").exists()
    found = client.artifacts.list().items
    assert {one.digest: one.versions for one in found}[digest] == ["default/once@1"]
    client.undeploy("once@1", force=True)


def test_serving_goes_on_without_the_store_and_a_start_waits_for_it(
    platform: Platform, between: Proxy, tmp_path: Path
) -> None:
    client = platform.client
    client.models.push("away", heavy(tmp_path, "away"))
    client.deploy("away@1", traffic=100)
    between.faults.down = True
    try:
        assert answer(client, "away") == 2.5
        client.scale("away@1", 2)  # its artifact is here
        until(lambda: client.deployments.show("away@1").ready == 2)
        assert answer(client, "away") == 2.5
    finally:
        between.faults.down = False
    client.undeploy("away@1", force=True)


def test_an_entry_that_rots_is_pulled_again(platform: Platform, tmp_path: Path) -> None:
    client = platform.client
    digest = client.models.push("rots", heavy(tmp_path, "rots")).result.digest
    entry = platform.folder / "cache" / digest
    good = entry.read_bytes()
    entry.chmod(0o644)
    entry.write_bytes(b"x" * len(good))
    client.deploy("rots@1", traffic=100)
    assert answer(client, "rots") == 2.5
    assert entry.read_bytes() == good
    client.undeploy("rots@1", force=True)


def test_a_pull_that_was_killed_goes_on(platform: Platform, between: Proxy, first: str, tmp_path: Path) -> None:
    client = platform.client
    made = client.models.push("slow", heavy(tmp_path, "slow")).result
    (platform.folder / "cache" / made.digest).unlink()
    stamp_path(platform.folder / "cache" / made.digest).unlink()
    between.faults.bytes_per_s = 1e6
    try:
        client.deploy("slow@1", traffic=100, wait_s=None)
        part = platform.folder / "cache" / f"{made.digest}.{made.size_bytes}.pulling"
        until(lambda: part.exists() and part.stat().st_size > 0)
        until(lambda: "pulling the artifact" in client.deployments.show("slow@1").detail)
        assert [one.state for one in client.deployments.show("slow@1").instances] == ["pulling"]
        client.scale(f"{first}@1", 4)  # whose artifact is here: nobody waits for the store on account of another
        until(lambda: client.deployments.show(f"{first}@1").ready == 4)
        client.scale(f"{first}@1", 3)
        os.kill(pid_of("headrace.registry.pull", platform), signal.SIGKILL)
    finally:
        between.faults.bytes_per_s = 0.0
    client.deploy("slow@1", traffic=100)
    assert answer(client, "slow") == 2.5
    client.undeploy("slow@1", force=True)


def pid_of(module: str, platform: Platform) -> int:
    """The process of a platform's node that runs a module."""
    node = msgspec.json.decode((platform.folder / "node.json").read_bytes(), type=NodeInfo).pid
    for text in Path(f"/proc/{node}/task/{node}/children").read_text().split():
        if module.encode() in Path(f"/proc/{text}/cmdline").read_bytes():
            return int(text)
    raise AssertionError(f"no {module}")


def test_an_artifact_damaged_in_the_store_fails_clearly_and_is_sent_again(
    platform: Platform, server: Server, first: str, tmp_path: Path
) -> None:
    client = platform.client
    path = heavy(tmp_path, "damaged")
    digest = client.models.push("damaged", path).result.digest
    (platform.folder / "cache" / digest).unlink()
    damage(platform, server, digest)
    with pytest.raises(Unprocessable, match="in the store is damaged"):
        client.deploy("damaged@1", traffic=100)
    assert answer(client, first) == 2.5  # the others serve
    assert client.models.push("damaged", path, force=True).result.version == 1
    client.deploy("damaged@1", traffic=100)
    assert answer(client, "damaged") == 2.5
    client.undeploy("damaged@1", force=True)


def damage(platform: Platform, server: Server, digest: str) -> None:
    """Put other bytes in an artifact's place."""
    url = (platform.folder / "bucket").read_text()
    wrong = platform.folder / "wrong"
    wrong.write_bytes(b"x" * WEIGHT)
    spec = parse_s3(url, server.endpoint, "", ("env:A", "env:B", "env:C"), {"A": ACCESS, "B": SECRET})
    asyncio.run(S3Store(spec).put(digest, wrong))


def test_a_full_disk_fails_the_deployment_and_leaves_the_rest_serving(server: Server, tmp_path: Path) -> None:
    if not small_disks():
        pytest.skip("this user may not mount a small disk")
    (tmp_path / "data" / "cache").mkdir(parents=True)
    arguments = f"--data {tmp_path / 'data'} --http-port 0 --grpc-port -1 --control-port 0"
    mount = f"mount -t tmpfs -o size=64m none {tmp_path / 'data' / 'cache'}"
    script = f"{mount} && exec {sys.executable} -m headrace.cli.main up {arguments}"
    environment = os.environ | settings(server, server.endpoint) | {"HEADRACE_CACHE_MAX_BYTES": str(1 << 40)}
    with (tmp_path / "up.log").open("wb") as log:
        node = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        until(lambda: "headrace is up" in (tmp_path / "up.log").read_text(), 60)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HEADRACE_DATA", str(tmp_path / "data"))
            patch.delenv("HEADRACE_URL", raising=False)
            client = Client()
        with client:
            for name in ("one", "two"):
                client.models.push(name, heavy(tmp_path, name))
            client.deploy("one@1", traffic=100)
            with pytest.raises(Unprocessable, match=r"no room for the artifact's .* is full"):
                client.deploy("two@1", traffic=100)
            assert answer(client, "one") == 2.5
            client.scale("one@1", 2)
            until(lambda: client.deployments.show("one@1").ready == 2)
            client.undeploy("two@1", force=True)
            client.undeploy("one@1", force=True)
            until(lambda: not any(one.instances for one in client.deployments.list().items))
            client.deploy("two@1", traffic=100)  # the other is evicted
            assert answer(client, "two") == 2.5
    finally:
        node.terminate()
        try:
            node.wait(30)
        finally:
            node.kill()


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("HEADRACE_ARTIFACTS", "gs://bucket", "artifacts"),
        ("HEADRACE_S3_ENDPOINT", "storage:9000", "s3_endpoint"),
        ("HEADRACE_S3_SECRET_KEY", "hunter2-is-a-secret", "s3_secret_key"),
        ("HEADRACE_S3_SECRET_KEY", "file:/nowhere/key", "s3_secret_key"),
        ("HEADRACE_S3_SECRET_KEY", "env:NOT_SET_ANYWHERE", "s3_secret_key"),
    ],
)
def test_settings_that_make_no_sense_end_the_start_with_one_line(
    tmp_path: Path, name: str, value: str, field: str
) -> None:
    environment = os.environ | {
        "HEADRACE_ARTIFACTS": "s3://bucket",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        name: value,
    }
    command = [sys.executable, "-m", "headrace.cli.main", "up", "--data", str(tmp_path), "--http-port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert field in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_secrets_come_from_files_and_leave_the_environment(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    environment = {"A": "access", "B": "unused"}
    references = ("env:A", f"file:{tmp_path / 'key'}", "env:C")
    spec = parse_s3("s3://bucket/a/b/", "https://storage/", "eu", references, environment)
    assert (spec.bucket, spec.prefix, spec.endpoint) == ("bucket", "a/b", "https://storage")
    assert (spec.access_key, spec.secret_key, spec.session_token) == ("access", "from-a-file", "")
    assert environment == {"B": "unused"}
    with pytest.raises(InvalidInput):
        parse_s3("s3://", "", "", references, environment)


def test_a_pipelines_parts_are_pulled_with_it(platform: Platform, tmp_path: Path) -> None:
    client = platform.client
    client.models.push("more", models.echo_onnx(5.0).named(tmp_path))
    path = tmp_path / "words.tar"
    path.write_bytes(pipelines.pipeline().content)
    client.models.push("words", path, engine="pipeline")
    client.deploy("words@1", traffic=100)
    assert client.predict("words", [b"one two!"])["total"].tolist() == [[108.0]]
    client.undeploy("words@1", force=True)
