"""Pipelines on a real platform: registered, deployed without their parts, asked over HTTP and gRPC, metered."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

import headrace
from headrace.client import calls
from headrace.client.client import AsyncClient, Client
from headrace.client.serve import Platform
from headrace.core.errors import Forbidden, InvalidInput, NotFound, PlatformFault, Unprocessable
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, ServedVersion
from headrace.registry import store as registry
from headrace.server.main import load_version
from tests import models, pipelines
from tests.integration.control import control
from tests.integration.test_cli import run_with
from tests.polling import until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline as its author has it."""
    folder = tmp_path_factory.mktemp("words")
    for name, content in pipelines.FILES.items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture(scope="module")
def words(client: Client, folder: Path) -> str:
    """A deployed pipeline; its model is registered and not deployed."""
    client.push("more", models.echo_onnx(5.0).content)
    version = client.push("words", folder).result
    assert (version.engine, version.parts) == ("pipeline", ["more@1"])
    client.deploy(f"words@{version.version}", traffic=100)
    return "words"


def test_the_parts_need_no_deployment(client: Client, words: str) -> None:
    found = client.predict(words, [b"one", b"one two!"])
    assert found["total"].tolist() == [[106.0], [108.0]]
    assert found["upper"].tolist() == [b"ONE", b"ONE TWO!"]
    assert "more" not in {one.model for one in client.deployments.list().items}


def test_tritons_clients_over_http_and_grpc(platform: Platform, words: str) -> None:
    headers = {"authorization": f"Bearer {platform.client.access.api_key}"}
    for triton, address in (
        (tritonclient.http, platform.client.access.url.removeprefix("http://")),
        (tritonclient.grpc, platform.grpc_url),
    ):
        with triton.InferenceServerClient(address) as server:
            metadata = server.get_model_metadata(words, headers=dict(headers))
            inputs = metadata["inputs"] if isinstance(metadata, dict) else metadata.inputs
            assert len(inputs) == 1
            tensor = triton.InferInput("text", [2], "BYTES")
            tensor.set_data_from_numpy(np.array([b"a\x00\xff!", b"b c"], object))
            result = server.infer(words, [tensor], headers=dict(headers))
            assert result.as_numpy("total").tolist() == [[107.0], [107.0]]
            assert result.as_numpy("upper").tolist() == [b"A\x00\xff!", b"B C"]


def test_a_bad_row_fails_alone(client: Client, words: str) -> None:
    """Among many at once: whoever shares its batch is answered rightly."""

    async def ask() -> list[Any]:
        async with AsyncClient(client.access.url, client.access.api_key, client.access.control_url) as many:
            await many.predict(words, [b"warm"])
            rows = [b"bad" if k % 10 == 3 else b"crash" if k % 10 == 7 else b"x " * k for k in range(60)]
            return list(await asyncio.gather(*(many.predict(words, [row]) for row in rows), return_exceptions=True))

    for k, answer in enumerate(asyncio.run(ask())):
        if k % 10 == 3:
            assert isinstance(answer, InvalidInput)
            assert answer.message == "step 'count': text: bad words are not counted"
        elif k % 10 == 7:
            assert isinstance(answer, PlatformFault)
            assert answer.message == "step 'count' failed: ValueError: crashed on request"
        else:
            assert answer["total"].tolist() == [[105.0 + k]], answer


def test_each_step_is_metered(client: Client, words: str) -> None:
    def counted() -> dict[str, float]:
        text = httpx.get(f"{client.access.control_url}/metrics").text
        found = re.findall(r'^headrace_step_rows_total\{.*model="default/words".*step="(\w+)".*\} (.+)$', text, re.M)
        return {step: float(value) for step, value in found}

    client.predict(words, [b"a"])
    until(lambda: len(counted()) == 4)
    before = counted()
    client.predict(words, [b"a"] * 7)
    until(lambda: counted() == {step: rows + 7 for step, rows in before.items()})
    text = httpx.get(f"{client.access.control_url}/metrics").text
    assert re.search(r'headrace_step_duration_seconds_count\{.*step="more"', text)
    promtool = shutil.which("promtool")
    if promtool is not None:
        done = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_it_runs_and_what_runs_it(client: Client, words: str, folder: Path) -> None:
    assert client.models.show_version("words@1").parts == ["more@1"]
    assert client.models.show_version("more@1").used_by == ["words@1"]
    again = client.push("words", folder).result
    assert (again.version, again.parts) == (1, ["more@1"])
    with pytest.raises(Unprocessable, match=r"step 'join': steps\.py:Join does not load: FileNotFoundError"):
        client.push("words", folder / "pipeline.toml")  # alone it takes along what it names, and base.txt it does not


def test_the_command_line(platform: Platform, words: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shout.toml").write_text('files = ["base.txt"]\n' + pipelines.WORDS)
    for name in ("steps.py", "base.txt"):
        shutil.copy(folder / name, tmp_path / name)
    run = run_with({"HEADRACE_DATA": str(platform.folder), "XDG_CONFIG_HOME": str(tmp_path)})
    said = run("models", "push", "shout", str(tmp_path / "shout.toml")).stdout
    assert "shout@1  pipeline" in said
    assert "  runs more@1" in said
    assert "more@1 is run by words@1, shout@1" in run("models", "show", "more").stdout
    assert "shout@1 runs more@1" in run("models", "show", "shout").stdout


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("nothing@1", NotFound, "step 'more': model 'nothing' does not exist in tenant 'default'"),
        ("more@9", NotFound, "step 'more': model 'more' has no version 9"),
        ("nobody/more@1", NotFound, "step 'more': tenant 'nobody' does not exist"),
        ("words@1", InvalidInput, "step 'more': words@1 is a pipeline"),
        ("more@x", InvalidInput, "the version after @ is a whole number"),
    ],
)
def test_a_reference_that_leads_nowhere(
    client: Client, words: str, reference: str, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(pipelines.pipeline(pipeline_toml=pipelines.WORDS.replace("more@1", reference)).content)
    with pytest.raises(kind, match=re.escape(message)) as caught:
        client.push("bad", path, engine="pipeline")
    assert isinstance(caught.value, headrace.errors.HeadraceError)
    assert caught.value.field == "steps.more.model"


def test_faults_that_only_the_examiner_sees(client: Client, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    for source, message in (
        (pipelines.STEPS.replace("return inputs[", "return inputs[:1]["), "fails on its first run: step 'join' failed"),
        ("import os\nos._exit(5)", "the model crashed while loading"),
    ):
        path.write_bytes(pipelines.pipeline(steps_py=source).content)
        with pytest.raises(Unprocessable, match=message):
            client.push("bad", path, engine="pipeline")


@pytest.fixture
def other(client: Client, words: str) -> Iterator[Client]:
    """Another tenant's developer."""
    client.call(calls.create_tenant("guests"))
    key = client.call(calls.create_key("developer", "guests", "")).result.text
    with Client(client.access.url, key, client.access.control_url) as found:
        yield found


def test_another_tenants_model_needs_a_grant(client: Client, other: Client, tmp_path: Path) -> None:
    path = tmp_path / "guest.tar"
    path.write_bytes(pipelines.pipeline(pipeline_toml=pipelines.WORDS.replace("more@1", "default/more@1")).content)
    with pytest.raises(Forbidden, match="default/more@1 is not granted to tenant 'guests'"):
        other.push("guest", path, engine="pipeline")
    client.models.grant("more", "guests")
    assert other.push("guest", path, engine="pipeline").result.parts == ["default/more@1"]
    assert "guests/guest@1" in client.models.show_version("more@1").used_by


def test_a_version_that_a_pipeline_runs_cannot_be_removed(tmp_path: Path) -> None:
    with control(tmp_path) as one:
        one.push("more", models.echo_onnx(5.0))
        one.push("words", pipelines.pipeline())
        more = one.run(one.store.run(lambda c: registry.find_model(c, 0, "more")))
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            one.run(
                one.store.run(
                    lambda c: c.execute(delete(registry.versions).where(registry.versions.c.model == more.id))
                )
            )
        assert one.do("GET", "/models/more/versions/1")["used_by"] == ["words@1"]


def test_a_replica_refuses_a_damaged_part(tmp_path: Path) -> None:
    part = pipelines.more(tmp_path)
    artifact = pipelines.pipeline()
    served = ServedVersion(
        0,
        "default/words",
        1,
        "pipeline",
        str(artifact.save(tmp_path)),
        artifact.digest,
        Signature((), ()),
        EngineOptions(),
        parts=(part,),
    )
    Path(part.artifact).write_bytes(b"something else")
    with pytest.raises(Unprocessable, match="the artifact is damaged"):
        load_version(served, 1, {}, lambda: None)


def test_the_examples_answer_rightly(platform: Platform) -> None:
    from examples import pipelines as examples

    client = platform.client
    name = examples.photo(client)
    if name is not None:
        photos = [(examples.PHOTOS / file).read_bytes() for file in ("china.jpg", "flower.jpg")]
        said = examples.answers(client, name, photos)
        assert [label for label, _ in said] == ["safe", "safe"]
        assert all(score > 0.9 for _, score in said)
        with pytest.raises(InvalidInput, match="step 'decode': image: 5 bytes that are no image"):
            client.predict(name, [b"\xff\xd8\xff\xe0\x00"])
    name, held_out = examples.library(client)
    said = examples.answers(client, name, [text for text, _ in held_out])
    right = sum(label == list(examples.MODULES)[true] for (label, _), (_, true) in zip(said, held_out, strict=True))
    assert right / len(held_out) > 0.9
    client.deployments.remove("library@1", force=True)
