"""Objects and files as artifacts: bytes on disk, a name that tells the format, and how to run them."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from headrace.core import pipeline
from headrace.core.errors import InvalidInput
from headrace.core.resources import Engine
from headrace.registry import tar


@dataclass(frozen=True, slots=True)
class Packed:
    """An artifact ready to send. `temporary` files are the sender's to remove."""

    path: Path
    file_name: str
    digest: str
    engine: Engine | None = None
    trust: bool = False
    temporary: bool = False


def pack(model: object) -> Packed:
    """An artifact out of a path, bytes of ONNX, or an object.

    scikit-learn estimators become skops files, XGBoost and LightGBM models their own formats, ONNX models ONNX; any
    other object or function is pickled with its code and trusted, since its maker sends it.

    Raises:
        InvalidInput: there is no such file.
    """
    if isinstance(model, str | os.PathLike):
        return _from_path(Path(model))
    fd, name = tempfile.mkstemp(prefix="headrace-artifact-")
    os.close(fd)
    path = Path(name)
    file_name, engine, trust = _write(model, path)
    return Packed(path, file_name, digest_of(path), engine, trust, True)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_path(path: Path) -> Packed:
    if path.is_dir():
        names = tar.files_in(path)
        return _tar(names, path.resolve().name, "pipeline" if pipeline.FILE in names else "python")
    if not path.exists():
        raise InvalidInput(f"path: {path} does not exist", field="path")
    if path.suffix == ".toml":
        return _pipeline(path)
    return Packed(path, path.name, digest_of(path))


def _pipeline(path: Path) -> Packed:
    """A declaration, and the files beside it that it names. Raises InvalidInput."""
    names = {pipeline.FILE: path}
    for name in pipeline.read(path).sources:
        names[name] = path.parent / name
        if not names[name].is_file():
            raise InvalidInput(f"{path.name}: it names {name}, which is not beside it", field="path")
    return _tar(names, path.stem, "pipeline")


def _tar(names: dict[str, Path], title: str, engine: Engine) -> Packed:
    """Files by their names in the tar."""
    fd, made = tempfile.mkstemp(prefix="headrace-artifact-", suffix=".tar")
    os.close(fd)
    tar.write(Path(made), names)
    return Packed(Path(made), f"{title}.tar", digest_of(Path(made)), engine, False, True)


def _write(model: Any, path: Path) -> tuple[str, Engine, bool]:
    """Write an object; returns file name, engine, and whether it must be trusted."""
    if isinstance(model, bytes):
        path.write_bytes(model)
        return "model.onnx", "onnx", False
    modules = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    if "onnx" in modules and hasattr(model, "SerializeToString"):
        path.write_bytes(model.SerializeToString())
        return "model.onnx", "onnx", False
    if "xgboost" in modules:
        booster = model.get_booster() if hasattr(model, "get_booster") else model
        path.write_bytes(booster.save_raw("ubj"))
        return "model.ubj", "xgboost", False
    if "lightgbm" in modules:
        booster = getattr(model, "booster_", model)
        path.write_text(booster.model_to_string())
        return "model.txt", "lightgbm", False
    if "sklearn" in modules:
        _write_skops(model, path)
        return "model.skops", "sklearn", False
    import cloudpickle

    path.write_bytes(cloudpickle.dumps(model))
    return "model.pkl", "python", True


def _write_skops(model: Any, path: Path) -> None:
    """A skops file that depends on the model alone, so that the same one is known again: skops names objects by their
    addresses in memory, and its archive tells the time."""
    import skops.io  # the one library that writes it; not needed by any other object

    names: dict[int, int] = {}

    def renamed(node: Any, field: str = "") -> Any:
        if isinstance(node, dict):
            return {name: renamed(value, name) for name, value in node.items()}
        if isinstance(node, list):
            return [renamed(value) for value in node]
        if field == "__id__":
            return names.setdefault(node, len(names))
        if field == "file" and isinstance(node, str):
            return renamed_file(node)
        return node

    def renamed_file(name: str) -> str:
        number, dot, suffix = name.partition(".")
        return f"{names.setdefault(int(number), len(names))}{dot}{suffix}" if number.isdigit() else name

    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(model))) as given, zipfile.ZipFile(path, "w") as made:
        schema = msgspec.json.encode(renamed(msgspec.json.decode(given.read("schema.json"))))
        files = {renamed_file(name): given.read(name) for name in given.namelist() if name != "schema.json"}
        for name, content in sorted({**files, "schema.json": schema}.items()):
            made.writestr(zipfile.ZipInfo(name), content)
