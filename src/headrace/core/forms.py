"""Where a node keeps the serving forms of artifacts (`server.engines.onnx_form` says what they are)."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

RECORD = "form.json"
"""In a form's folder: what was made and measured, or why there is nothing."""


def forms_folder(data: Path) -> Path:
    """Where the forms of this node are: another release of the engine makes others."""
    return data / "forms" / f"onnxruntime-{version('onnxruntime')}"


def folder_of(forms: Path, digest: str) -> Path:
    """Where the form of an artifact is, or would be."""
    return forms / digest
