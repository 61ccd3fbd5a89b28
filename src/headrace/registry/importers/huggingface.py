"""Hugging Face directories: ``config.json``, weights in safetensors, a tokenizer.

Weights alone are no program, and no engine here knows the architectures of Transformers. What the directory may hold
besides can be served: an ONNX export, or a scikit-learn model in skops. Otherwise the refusal says what the model is.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from headrace.core.errors import Unprocessable
from headrace.registry import pickles
from headrace.registry.importers import gguf, onnx
from headrace.registry.importers.candidate import Asked, Candidate, inside, name_of

CONFIG = "config.json"
HEADER_MAX = 100 << 20
"""Bytes of a safetensors header, as its library allows."""
_ONNX_PLACES = ("onnx/model.onnx", "model.onnx")
_CONVERT = "export it to ONNX: optimum-cli export onnx --model DIR OUT, then import OUT; an LLM needs the LLM engine"


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read(folder: Path, asked: Asked) -> Candidate:
    """What the directory holds that can be served. Raises Unprocessable, saying what the model is, when nothing is."""
    config = _json(folder / CONFIG)
    name = name_of(_model_name(folder))
    tags = {"huggingface.architecture": architecture(config)}
    place = next((place for place in _ONNX_PLACES if (folder / place).is_file()), None)
    if place is not None:
        made = onnx.read(folder / place, asked)
        return Candidate(name, made.path, f"{name}{made.path.suffix}", "onnx", made.signature, notes=made.notes).noted(
            *_notes(folder, place), **tags
        )
    estimator = config.get("sklearn")
    if isinstance(estimator, dict):
        return _sklearn(folder, name, estimator, asked)
    raise _refusal(folder, name, architecture(config))


def architecture(config: dict[str, Any]) -> str:
    """``LlamaForCausalLM``, or the model's type where no class is named."""
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else config.get("model_type")
    return str(first or "unknown architecture")


def weights(path: Path) -> tuple[int, str]:
    """Parameters in a safetensors file and the datatype that most have. Raises Unprocessable when it is damaged."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > HEADER_MAX:
                raise ValueError(f"a header of {size} bytes")
            header = msgspec.json.decode(file.read(size), type=dict[str, msgspec.Raw])
        tensors = [msgspec.json.decode(raw, type=_Tensor) for key, raw in header.items() if key != "__metadata__"]
    except (struct.error, ValueError, msgspec.DecodeError) as error:
        raise Unprocessable(f"{path.name}: no safetensors file, or damaged: {error}", field="source") from None
    end = 8 + size + max((tensor.data_offsets[1] for tensor in tensors), default=0)
    if path.stat().st_size < end:
        found = path.stat().st_size
        raise Unprocessable(f"{path.name}: cut short: {found} bytes, its header tells of {end}", field="source")
    by_type: dict[str, int] = {}
    for tensor in tensors:
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + prod(tensor.shape)
    return sum(by_type.values()), max(by_type, key=lambda kind: by_type[kind], default="none")


def _refusal(folder: Path, name: str, what: str) -> Unprocessable:
    """Why the weights cannot be served, and what they are."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        parts = [weights(file) for file in files]
        total = gguf.count(sum(size for size, _ in parts))
        held = f"{total} parameters, mostly {parts[0][1]}, in {len(files)} safetensors file(s)"
    elif found := sorted(folder.glob("*.gguf")):
        held = str(gguf.read(found[0]))
    elif pickled := sorted(folder.glob("*.bin")):
        held = f"weights as a pickle, {pickled[0].name}: {pickles.scan(pickled[0])}"
    else:
        return Unprocessable(
            f"{name}: {what}: no weights: expected onnx/model.onnx or .safetensors", field="source",
            hint="is the folder copied whole?",
        )  # fmt: skip
    return Unprocessable(
        f"{name}: {what}, {held}: no engine of this release runs Transformers' weights", field="source", hint=_CONVERT
    )


def _sklearn(folder: Path, name: str, estimator: dict[str, Any], asked: Asked) -> Candidate:
    """A scikit-learn model as skops' hub tools write it."""
    model = estimator.get("model")
    file_name = model.get("file") if isinstance(model, dict) else None
    path = inside(folder, file_name, f"{CONFIG}: sklearn.model.file")
    if path.suffix != ".skops" and not asked.trust:
        raise pickles.refusal(path, path.name, "trust", "store it with skops")
    return Candidate(name, path, path.name, "sklearn", asked.signature, trust=asked.trust)


def _notes(folder: Path, place: str) -> list[str]:
    notes = []
    if (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
        notes.append("the tokenizer stays with the caller: the model takes numbers, not text")
    others = [file.name for file in sorted((folder / place).parent.glob("*.onnx")) if file != folder / place]
    if others:
        notes.append(f"other ONNX files are left alone: {', '.join(others)}; import one by its path")
    return notes


def _model_name(folder: Path) -> str:
    """The folder's name; in the hub's cache that is a revision, and the model's name is two above."""
    resolved = folder.absolute()
    if resolved.parent.name == "snapshots":
        return resolved.parent.parent.name.rpartition("--")[2]
    return resolved.name


def _json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise Unprocessable(f"{path.name} cannot be read: {error.strerror}", field="source") from None
    except msgspec.DecodeError as error:
        raise Unprocessable(f"{path.name} is no JSON object: {error}", field="source") from None
