"""What is said of a pickle that nobody trusts: what it would call, without calling it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import joblib
import pytest

from headrace.registry import pickles
from tests import models

PACKERS = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": lambda content: archive({"data.pkl": content}),
    "zip in a zip": lambda content: archive({"sample.pt": archive({"data.pkl": content})}),
}


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return buffer.getvalue()


def scan(content: bytes, folder: Path) -> pickles.Scan:
    path = folder / "artifact"
    path.write_bytes(content)
    return pickles.scan(path)


@pytest.mark.parametrize("packer", PACKERS)
def test_hostile_pickles_are_found(packer, tmp_path):
    marker = tmp_path / "ran"
    found = scan(PACKERS[packer](models.hostile_pickle(marker).content), tmp_path)
    assert found.dangerous == ("posix.mkdir",)
    assert "posix.mkdir, which can run any code" in str(found)
    assert not marker.exists()


class _Stealthy:
    """Reaches what it wants by a detour."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (dict, "fromkeys")


def test_a_detour_and_an_honest_model(tmp_path):
    assert "builtins.getattr" in scan(pickle.dumps(_Stealthy()), tmp_path).dangerous
    honest = scan(pickle.dumps(models.sklearn_classifier()), tmp_path)
    assert not honest.dangerous
    assert "sklearn.preprocessing._data.StandardScaler" in honest.unknown
    assert "can run any code" in str(honest)  # no list makes a pickle safe
    assert scan(pickle.dumps([1, 2]), tmp_path) == pickles.Scan((), (), True)


def test_joblib(tmp_path):
    joblib.dump([_Stealthy(), models.sklearn_classifier()], tmp_path / "m", compress=3)
    found = pickles.scan(tmp_path / "m")
    assert "builtins.getattr" in found.dangerous
    # It writes arrays between the parts, and the scanner stops there: then that is said.
    assert not found.complete
    assert "not all of it could be looked at" in str(found)


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"\x80\x04c", b"\x1f\x8b??", b"PK\x03\x04??", b"\x78\x9c??", b"BZh??", b"\xff" * 100]
)
def test_what_is_no_pickle_is_survived(content, tmp_path):
    assert not scan(content, tmp_path).dangerous
