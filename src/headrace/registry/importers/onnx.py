"""ONNX models, whole or with weights in other files.

An artifact is one file, and the engine opens no other. So weights that lie beside the model are written into it: the
message is copied piece by piece, each tensor that names another file gets that file's bytes, and the sizes of all
messages around it are told anew. Nothing is read into memory. A protocol buffer holds less than 2 GiB; a model above
becomes a tar of the model and its weights, which the engine unpacks into a folder of its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from headrace.core.errors import Unprocessable
from headrace.registry import tar
from headrace.registry.importers.candidate import Asked, Candidate, inside, name_of
from headrace.registry.importers.protobuf import LENGTH, Field, fields, head

ONE_FILE_MAX = (1 << 31) - 1
"""Bytes of the largest protocol buffer."""
MODEL_IN_TAR = "model.onnx"
_ORT = b"ORTM"

# The messages that may hold tensors, by onnx.proto: field number -> the kind of message in it.
_KINDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_GRAPH, _INITIALIZER, _INPUT, _OUTPUT = 7, 5, 11, 12
_TENSOR_NAME, _RAW, _EXTERNAL, _LOCATION = 8, 9, 13, 14
_DEPTH_MAX = 64


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of another file."""

    path: Path
    offset: int
    size: int


Piece = bytes | memoryview | Slice


def read(path: Path, asked: Asked, one_file_max: int = ONE_FILE_MAX) -> Candidate:
    """An ONNX file, or the only one in a folder, as a candidate of one file.

    Args:
        path: ``.onnx`` with or without external data, or ``.ort``.
        asked: where a merged file goes.
        one_file_max: bytes above which it becomes a tar.

    Raises:
        Unprocessable: it is damaged, or a file that it names is missing, too short, or outside of its folder.
    """
    model = _model_file(path)
    name = name_of(path.name if path.is_dir() else path.stem)
    data = _mapped(model)
    if bytes(data[4:8]) == _ORT:
        return Candidate(name, model, model.name, "onnx", asked.signature)
    pieces = _message(data, "model", model, 0)
    files = {piece.path for piece in pieces if isinstance(piece, Slice)}
    if not files:
        return Candidate(name, model, model.name, "onnx", asked.signature)
    if _size(pieces) <= one_file_max:
        merged = asked.scratch / f"{name}.onnx"
        with merged.open("wb") as file:
            for piece in pieces:
                _copy(piece, file)
        note = f"weights out of {len(files)} other file(s) were written into the model"
        return Candidate(name, merged, merged.name, "onnx", asked.signature).noted(note)
    artifact = asked.scratch / f"{name}.tar"
    members = {MODEL_IN_TAR: model, **{str(file.relative_to(model.parent)): file for file in files}}
    tar.write(artifact, members)
    note = f"larger than {one_file_max} bytes, the most that an ONNX file holds: packed as a tar, its weights beside it"
    return Candidate(name, artifact, artifact.name, "onnx", asked.signature).noted(note)


def check_locations(model: Path) -> None:
    """Raises Unprocessable unless each other file that the model names lies whole in the model's folder."""
    _message(_mapped(model), "model", model, 0)


def ports(model: Path) -> tuple[list[str], list[str]]:
    """Names of the model's inputs and outputs, in order; inputs that are weights are left out. Raises Unprocessable."""
    found: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _INITIALIZER: []}
    data = _mapped(model)
    if bytes(data[4:8]) == _ORT:  # a format of its own, which tells nothing here
        return [], []
    for graph in _fields(data, model):
        for item in _fields(graph.value, model) if graph.number == _GRAPH else ():
            if item.number in found and item.wire == LENGTH:
                name = _TENSOR_NAME if item.number == _INITIALIZER else 1
                found[item.number] += [f.text() for f in _fields(item.value, model) if f.number == name]
    weights = set(found[_INITIALIZER])
    return [name for name in found[_INPUT] if name not in weights], found[_OUTPUT]


# ------------------------------------------------------------------------------------------------ the message
def _message(data: memoryview, kind: str, model: Path, depth: int) -> list[Piece]:
    """The message with weights of other files in their places; runs of unchanged fields are one piece."""
    if depth > _DEPTH_MAX:
        raise Unprocessable(f"{model.name}: nested deeper than {_DEPTH_MAX}", field="source")
    inner = _KINDS[kind]
    pieces: list[Piece] = []
    start = end = 0
    for item in _fields(data, model):
        after = end + len(item.raw)
        child = inner.get(item.number) if item.wire == LENGTH else None
        if child is not None:
            found = _tensor(item.value, model) if child == "tensor" else _message(item.value, child, model, depth + 1)
            if found and (len(found) > 1 or isinstance(found[0], Slice)):  # else nothing in it changed
                pieces += [data[start:end], head(item.number, _size(found)), *found]
                start = after
        end = after
    pieces.append(data[start:end])
    return [piece for piece in pieces if isinstance(piece, Slice) or len(piece)]


def _tensor(data: memoryview, model: Path) -> list[Piece]:
    """A tensor; one that names another file with the file's bytes instead."""
    kept: list[Piece] = []
    named: dict[str, str] = {}
    outside = False
    for item in _fields(data, model):
        if item.number == _EXTERNAL:
            entry = {f.number: f.text() for f in _fields(item.value, model)}
            named[entry.get(1, "")] = entry.get(2, "")
        elif item.number == _LOCATION:
            outside = item.integer() == 1
        else:
            kept.append(item.raw)
    if not outside:
        return [data]
    weights = _slice(named, model)
    return [*kept, head(_RAW, weights.size), weights]


def _slice(named: Mapping[str, str], model: Path) -> Slice:
    path = inside(model.parent, named.get("location"), f"{model.name}: external data")
    whole = path.stat().st_size
    try:
        offset = int(named.get("offset") or 0)
        size = int(named.get("length") or whole - offset)
    except ValueError:
        raise Unprocessable(f"{model.name}: offset or length of {path.name} is no number", field="source") from None
    if offset < 0 or size < 0 or offset + size > whole:
        raise Unprocessable(
            f"{model.name}: wants bytes {offset} to {offset + size} of {path.name}, which has {whole}",
            field="source",
            hint="is the folder copied whole?",
        )
    return Slice(path, offset, size)


def _fields(data: memoryview, model: Path) -> Iterator[Field]:
    try:
        yield from fields(data)
    except ValueError as error:
        raise Unprocessable(f"{model.name}: no ONNX model, or damaged: {error}", field="source") from None


# ------------------------------------------------------------------------------------------------ files
def _model_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.onnx"))
    chosen = path / "model.onnx" if path / "model.onnx" in found else found[0] if len(found) == 1 else None
    if chosen is None:
        names = ", ".join(file.name for file in found) or "none"
        raise Unprocessable(f"{path.name}: expected model.onnx or one .onnx file, found {names}", field="source")
    return chosen


def _mapped(path: Path) -> memoryview:
    """The file's content, mapped for as long as something refers to it. Raises Unprocessable when it is empty."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise Unprocessable(f"{path.name} cannot be read: {reason}", field="source") from None


def _size(pieces: list[Piece]) -> int:
    return sum(piece.size if isinstance(piece, Slice) else len(piece) for piece in pieces)


def _copy(piece: Piece, target: BinaryIO) -> None:
    if not isinstance(piece, Slice):
        target.write(piece)
        return
    with piece.path.open("rb") as source:
        source.seek(piece.offset)
        left = piece.size
        while left:
            chunk = source.read(min(left, 1 << 20))
            if not chunk:
                raise Unprocessable(f"{piece.path.name} became shorter while it was read", field="source")
            target.write(chunk)
            left -= len(chunk)
