"""Triton model repositories: ``<model>/<version>/<file>`` and an optional ``<model>/config.pbtxt``.

A model whose backend no engine here stands for is refused with the reason; its neighbours are imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from headrace.core.errors import CallerError, Unprocessable
from headrace.core.resources import Engine
from headrace.core.signature import Signature, TensorSpec
from headrace.registry.importers import onnx, torch
from headrace.registry.importers.candidate import Asked, Candidate, Found, Refusal, inside, name_of
from headrace.registry.importers.pbtxt import Message, Value, parse

CONFIG = "config.pbtxt"
_ONNX, _TORCH, _FIL = "onnxruntime", "pytorch", "fil"
_BACKEND_OF_PLATFORM = {"onnxruntime_onnx": _ONNX, "pytorch_libtorch": _TORCH}
_FILES: dict[str, tuple[str, ...]] = {
    _ONNX: ("model.onnx",),
    _TORCH: ("model.pt",),
    _FIL: ("xgboost.json", "xgboost.ubj", "xgboost.model", "model.txt"),
}
"""What a version's folder holds, by backend: the first that is there."""
_FIL_ENGINES: dict[str, Engine] = {".txt": "lightgbm"}
_REASONS = {
    "python": "a model.py for Triton's python backend speaks triton_python_backend_utils, which exists in Triton only: "
    "port it to a class Model (docs/engines.md) and push it",
    "tensorrt": "a TensorRT plan is built for one GPU; import the ONNX model that it was made of",
    "tensorflow": "no engine here runs TensorFlow; convert it with tf2onnx and import the ONNX model",
    "ensemble": "an ensemble names other models and holds none; import those",
}
_ALIASES = {"tensorrt_plan": "tensorrt", "tensorflow_savedmodel": "tensorflow", "tensorflow_graphdef": "tensorflow"}
_PLATFORMS = {"ensemble": "ensemble", **_ALIASES, **_BACKEND_OF_PLATFORM}
_TYPES = {"TYPE_STRING": "BYTES", **{f"TYPE_{name}": name for name in (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
)}}  # fmt: skip
_NOT_USED = {
    "dynamic_batching": "dynamic_batching is not taken over: batches form by themselves here",
    "instance_group": "instance_group is not taken over: say replicas when you deploy",
    "sequence_batching": "sequence_batching has no equivalent: requests are independent of each other here",
    "version_policy": "version_policy is not taken over: say which version serves when you deploy",
    "optimization": "optimization is not taken over",
    "model_warmup": "model_warmup is not needed: a replica runs each model once before it is ready",
    "response_cache": "response_cache is not taken over",
}


@dataclass(frozen=True, slots=True)
class _Config:
    """What ``config.pbtxt`` says that is of use here."""

    backend: str
    batch_max: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    file_name: str | None
    notes: tuple[str, ...]


def is_repository(folder: Path) -> bool:
    """Whether the folder holds models with numbered versions."""
    return any(_is_model(child) for child in folder.iterdir() if child.is_dir())


def is_model(folder: Path) -> bool:
    """Whether the folder is one model of a repository."""
    return _is_model(folder)


def read(folder: Path, asked: Asked) -> Found:
    """All versions of all models of a repository, or of the one model that the folder is."""
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    models = [folder] if _is_model(folder) else sorted(child for child in folder.iterdir() if _is_model(child))
    if not models:
        raise Unprocessable(
            f"{folder.name}: no model: expected <model>/<version number>/<file>", field="source", hint="is it empty?"
        )
    for model in models:
        name = name_of(model.resolve().name)
        try:
            candidates += list(_versions(model, name, asked))
        except CallerError as error:
            refusals.append(Refusal(name, error))
    return Found("triton", tuple(candidates), tuple(refusals))


def _is_model(folder: Path) -> bool:
    return folder.is_dir() and bool((folder / CONFIG).is_file() or _numbers(folder))


def _numbers(folder: Path) -> list[int]:
    """Triton's versions: folders whose name is a number from 1."""
    found = (child.name for child in folder.iterdir() if child.is_dir())
    return sorted(int(name) for name in found if name.isascii() and name.isdigit() and int(name) > 0)


def _versions(folder: Path, name: str, asked: Asked) -> Iterator[Candidate]:
    config = _config(folder)
    numbers = _numbers(folder)
    if not numbers:
        raise Unprocessable(f"{name}: no version: expected a folder such as 1/", field="source")
    for number in numbers:
        scratch = asked.scratch / f"{name}-{number}"
        scratch.mkdir()
        found = _version(folder / str(number), name, config, replace(asked, scratch=scratch))
        yield replace(found, name=name).noted(*config.notes, **{"triton.version": str(number)})


def _version(folder: Path, name: str, config: _Config, asked: Asked) -> Candidate:
    backend = config.backend or _guessed(folder)
    where = f"{name}/{folder.name}"
    if backend not in _FILES:
        reason = _REASONS.get(backend, "no engine here stands for it")
        raise Unprocessable(f"{where}: backend {backend!r}: {reason}", field="backend")
    names = (config.file_name,) if config.file_name else _FILES[backend]
    present = next((file for file in names if (folder / file).exists()), names[0])
    path = folder / present if (folder / present).is_dir() else inside(folder, present, where)
    given = asked.signature or _signature(config)
    if backend == _ONNX:
        made = onnx.read(path, asked)
        signature, outputs = _ordered(path, given, where)
        return replace(made, signature=signature, outputs=outputs, batch_max=_batch_max(config))
    if backend == _TORCH:
        return replace(torch.read(path, replace(asked, signature=given)), batch_max=_batch_max(config))
    engine = _FIL_ENGINES.get(path.suffix, "xgboost")
    note = "the engine names its tensors itself: input and probabilities, or prediction, for input__0 and output__0"
    return Candidate(name, path, path.name, engine, batch_max=_batch_max(config)).noted(note)


def _batch_max(config: _Config) -> int | None:
    """Triton's 0 says that the model does not batch: then each request runs alone. None where nothing is said."""
    if not config.inputs and not config.batch_max:
        return None
    return max(config.batch_max, 1)


def _guessed(folder: Path) -> str:
    """The backend by the file's name, as Triton completes a configuration. Raises Unprocessable."""
    for backend, names in (*_FILES.items(), ("python", ("model.py",)), ("tensorrt", ("model.plan",))):
        if any((folder / name).exists() for name in names):
            return backend
    if (folder / "model.savedmodel").exists():
        return "tensorflow"
    names_known = ", ".join(name for names in _FILES.values() for name in names)
    raise Unprocessable(
        f"{folder.parent.name}/{folder.name}: no model file, expected one of {names_known}",
        field="source",
        hint="name the file: default_model_filename in config.pbtxt",
    )


def _ordered(path: Path, given: Signature | None, where: str) -> tuple[Signature | None, tuple[str, ...]]:
    """The configuration's tensors in the model's own order, and which outputs are wanted. Raises Unprocessable."""
    if given is None:
        return None, ()
    model = path / "model.onnx" if path.is_dir() else path
    if not model.is_file():  # a folder with a file of another name: the engine says what fits
        return given, ()
    own_inputs, own_outputs = onnx.ports(model)
    if not own_inputs and not own_outputs:  # ORT's own format
        return given, ()
    for part, specs, own in (("input", given.inputs, own_inputs), ("output", given.outputs, own_outputs)):
        wrong = [spec.name for spec in specs if spec.name not in own]
        if wrong:
            known = ", ".join(own)
            raise Unprocessable(f"{where}: {CONFIG} names {part} {', '.join(wrong)}, the model has {known}", field=part)
    inputs = tuple(sorted(given.inputs, key=lambda spec: own_inputs.index(spec.name)))
    outputs = tuple(sorted(given.outputs, key=lambda spec: own_outputs.index(spec.name)))
    chosen = tuple(spec.name for spec in outputs) if len(outputs) < len(own_outputs) else ()
    return Signature(inputs, outputs), chosen


# ------------------------------------------------------------------------------------------------ config.pbtxt
def _config(folder: Path) -> _Config:
    path = folder / CONFIG
    if not path.is_file():
        return _Config("", 0, (), (), None, ())
    try:
        message = parse(path.read_text())
    except (ValueError, OSError) as error:
        raise Unprocessable(f"{folder.name}/{CONFIG}: {error}", field="source") from None
    platform = _text(message, "platform")
    backend = _text(message, "backend") or _PLATFORMS.get(platform, platform)
    batch_max = _last(message, "max_batch_size", 0)
    if not isinstance(batch_max, int) or batch_max < 0:
        raise Unprocessable(f"{folder.name}/{CONFIG}: max_batch_size is {batch_max!r}", field="max_batch_size")
    inputs, _ = _tensors(message, "input", batch_max > 0, folder.name)
    outputs, labels = _tensors(message, "output", batch_max > 0, folder.name)
    notes = [note for name, note in _NOT_USED.items() if name in message]
    if labels:
        notes.append(f"labels ({', '.join(labels)}) are not taken over: outputs are numbers here")
    file_name = _text(message, "default_model_filename") or None
    return _Config(_ALIASES.get(backend, backend), batch_max, inputs, outputs, file_name, tuple(notes))


def _signature(config: _Config) -> Signature | None:
    """What the configuration says of the model's tensors; None unless it tells all, as Triton does not need it to."""
    return Signature(config.inputs, config.outputs) if config.inputs and config.outputs else None


def _tensors(message: Message, part: str, batched: bool, name: str) -> tuple[tuple[TensorSpec, ...], list[str]]:
    """Inputs or outputs, and the files of their labels. Raises Unprocessable."""
    specs, labels = [], []
    for k, item in enumerate(message.get(part, ())):
        where = f"{name}/{CONFIG}: {part}[{k}]"
        if not isinstance(item, dict):
            raise Unprocessable(f"{where}: expected a message", field=part)
        datatype = _TYPES.get(_text(item, "data_type"))
        dims = item.get("dims", [])
        if datatype is None or not all(isinstance(n, int) for n in dims):
            raise Unprocessable(
                f"{where}: data_type {_text(item, 'data_type') or 'missing'}, dims {dims}: no tensor here has them",
                field=f"{part}[{k}]",
            )
        shape = tuple(n for n in dims if isinstance(n, int))
        specs.append(TensorSpec(_text(item, "name"), datatype, (-1, *shape) if batched else shape))
        labels += [label for label in [_text(item, "label_filename")] if label]
    return tuple(specs), labels


def _last(message: Message, name: str, default: Value) -> Value:
    return (message.get(name) or [default])[-1]


def _text(message: Message, name: str) -> str:
    found = _last(message, name, "")
    return found if isinstance(found, str) else ""
