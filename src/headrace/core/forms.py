"""Where a node keeps the serving forms of artifacts (`server.engines.onnx_form` says what they are)."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

RECORD = "form.json"
"""In a form's folder: what was made and measured, or why there is nothing."""


def folder_of(forms: Path, digest: str) -> Path:
    """Where the form of an artifact is, or would be: another release of the engine makes another."""
    return forms / f"{digest}.ort-{version('onnxruntime')}"
