"""A pipeline as an artifact: what is taken along, and where its declaration is found again."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from headrace.client import artifacts
from headrace.core.errors import CallerError, InvalidInput
from headrace.core.pipeline import FILE, TEXT_MAX, read
from tests import pipelines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "words"
    made.mkdir()
    for name, content in pipelines.FILES.items():
        (made / name).write_text(content)
    (made / "notes.txt").write_text("of no step")
    return made


def names(packed: artifacts.Packed) -> list[str]:
    with tarfile.open(packed.path) as tar:
        found = tar.getnames()
    packed.path.unlink()
    return found


def test_a_declaration_takes_along_what_it_names_and_nothing_else(folder: Path) -> None:
    (folder / "words.toml").write_text('files = ["base.txt"]\n' + pipelines.WORDS)
    packed = artifacts.pack(folder / "words.toml")
    assert (packed.engine, packed.file_name, packed.trust) == ("pipeline", "words.tar", False)
    again = artifacts.pack(folder / "words.toml")
    assert packed.digest == again.digest
    assert read(packed.path) == read(folder / "words.toml")
    assert names(packed) == names(again) == ["base.txt", FILE, "steps.py"]


def test_a_folder_with_a_declaration_is_a_pipeline_whole(folder: Path) -> None:
    packed = artifacts.pack(folder)
    assert packed.engine == "pipeline"
    assert names(packed) == ["base.txt", "notes.txt", FILE, "steps.py"]


def test_a_file_that_is_not_beside_it_is_told(folder: Path) -> None:
    (folder / "steps.py").unlink()
    with pytest.raises(InvalidInput, match=r"pipeline\.toml: it names steps\.py, which is not beside it"):
        artifacts.pack(folder / FILE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(pipelines.pipeline().content), "expected an uncompressed one"),
        (b" " * (TEXT_MAX + 1), "is larger than"),
        (pipelines.tar({FILE: " " * (TEXT_MAX + 1)}), "is larger than"),
        (pipelines.tar({f"a/b/{FILE}": pipelines.WORDS}), r"holds no pipeline\.toml"),
        (b"", "inputs"),
        (b"inputs = []\noutputs = []\nsteps = []", "inputs: empty"),
    ],
)
def test_what_holds_no_declaration_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "artifact").write_bytes(content)
    with pytest.raises(CallerError, match=message) as caught:
        read(tmp_path / "artifact")
    assert caught.value.field
