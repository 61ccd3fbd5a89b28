"""A source of any format as candidates: which format it is, and who reads it."""

from __future__ import annotations

from pathlib import Path

from headrace.core.errors import InvalidInput, Unprocessable
from headrace.registry.importers import gguf, huggingface, mlflow, onnx, torch, triton
from headrace.registry.importers.candidate import FORMATS, Asked, Candidate, Format, Found

_ONNX_SUFFIXES = (".onnx", ".ort")
_KNOWN = (
    "an MLflow directory (MLmodel), a Triton repository, a Hugging Face directory (config.json), a GGUF file, "
    "TorchScript, torch.export or ONNX"
)


def read(source: Path, asked: Asked, format: Format = "auto") -> Found:
    """What the source holds.

    Args:
        source: file or folder.
        asked: trust, signature, and a folder for what has to be written.
        format: ``auto`` to tell it by the source's content.

    Raises:
        InvalidInput: there is no such source or format.
        Unprocessable: it is damaged, incomplete, or no engine here runs it; the reason is said.
    """
    if format not in FORMATS:
        raise InvalidInput(f"format: {format!r}, expected one of {', '.join(FORMATS)}", field="format")
    if not source.exists():
        raise InvalidInput(f"source: {source} does not exist", field="source")
    chosen = detect(source) if format == "auto" else format
    _check_kind(source, chosen)
    if chosen == "triton":
        return triton.read(source, asked)
    return Found(chosen, (_one(source, asked, chosen),))


def _one(source: Path, asked: Asked, format: Format) -> Candidate:
    match format:
        case "mlflow":
            return mlflow.read(source, asked)
        case "huggingface":
            return huggingface.read(source, asked)
        case "gguf":
            raise gguf.refuse(source)
        case "onnx":
            return onnx.read(source, asked)
        case _:
            kind = torch.kind_of(source)
            if kind != format:
                raise Unprocessable(f"{source.name} is {kind}, not {format}", field="format")
            return torch.read(source, asked)


def detect(source: Path) -> Format:
    """The format, by content. Raises Unprocessable when it is none that is imported."""
    if source.is_dir():
        return _detect_folder(source)
    with source.open("rb") as file:
        start = file.read(4)
    if start == gguf.MAGIC:
        return "gguf"
    if source.suffix in _ONNX_SUFFIXES:
        return "onnx"
    if start == b"PK\x03\x04" or source.suffix in (".pt", ".pth", ".pt2", ".bin"):
        return torch.kind_of(source)
    raise Unprocessable(
        f"{source.name}: expected {_KNOWN}",
        field="source",
        hint="a model file as its library saves it is pushed: headrace models push NAME FILE",
    )


def _detect_folder(folder: Path) -> Format:
    if (folder / mlflow.MODEL_FILE).is_file():
        return "mlflow"
    if (folder / huggingface.CONFIG).is_file():
        return "huggingface"
    if triton.is_model(folder) or triton.is_repository(folder):
        return "triton"
    if any(folder.glob("*.onnx")):
        return "onnx"
    if found := sorted(folder.glob("*.gguf")):
        raise gguf.refuse(found[0])
    raise Unprocessable(f"{folder.name}: expected {_KNOWN}", field="source")


def _check_kind(source: Path, format: Format) -> None:
    """Raises InvalidInput where a format wants a folder and gets a file, or the other way about."""
    folders, files = ("mlflow", "triton", "huggingface"), ("gguf", "torchscript", "torch-export")
    if format in folders and not source.is_dir():
        raise InvalidInput(f"source: {source.name} is a file, {format} is a folder", field="source")
    if format in files and source.is_dir():
        raise InvalidInput(f"source: {source.name} is a folder, {format} is a file", field="source")
