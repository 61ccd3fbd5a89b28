"""What an importer finds: versions ready to register, and models that it refuses with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from headrace.core.errors import CallerError, Unprocessable
from headrace.core.resources import Engine
from headrace.core.signature import Signature

Format = Literal["auto", "mlflow", "triton", "huggingface", "gguf", "torchscript", "torch-export", "onnx"]
FORMATS: tuple[Format, ...] = (
    "auto",
    "mlflow",
    "triton",
    "huggingface",
    "gguf",
    "torchscript",
    "torch-export",
    "onnx",
)
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
NAME_MAX = 63


@dataclass(frozen=True, slots=True)
class Asked:
    """What whoever imports says.

    Attributes:
        scratch: folder for artifacts that have to be written; removed by the caller after they were sent.
        trust: the source may execute code when it is loaded.
        signature: what the model takes and gives, for formats that do not say it.
    """

    scratch: Path
    trust: bool = False
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version to register. `notes` say what of the source has no place here."""

    name: str
    path: Path
    file_name: str
    engine: Engine
    signature: Signature | None = None
    outputs: tuple[str, ...] = ()
    batch_max: int | None = None
    trust: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    notes: tuple[str, ...] = ()

    def noted(self, *notes: str, **tags: str) -> Candidate:
        """The same with notes and tags added."""
        return replace(self, notes=(*self.notes, *notes), tags={**self.tags, **tags})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model of the source that is not imported."""

    name: str
    error: CallerError


@dataclass(frozen=True, slots=True)
class Found:
    """What a source holds. Versions of a model are in the order in which they are to be registered."""

    format: Format
    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...] = ()


def name_of(text: str) -> str:
    """A model's name out of a folder's or a file's: what a name may not hold becomes ``-``."""
    return _NO_NAME.sub("-", text).strip("._-")[:NAME_MAX] or "model"


def inside(folder: Path, name: object, what: str) -> Path:
    """A file that a model names in its own folder.

    Told by the name alone, not by where links lead: the hub's cache is made of links. A name that leads out of the
    folder would carry files of this machine into an artifact that others can read.

    Raises:
        Unprocessable: the name leads out of the folder, or there is no such file.
    """
    if not isinstance(name, str) or not name:
        raise Unprocessable(f"{what}: expected a file name, got {name!r}", field="source")
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
        raise Unprocessable(f"{what}: {name!r} leads out of the model's folder", field="source")
    path = folder.joinpath(*parts)
    if not path.is_file():
        raise Unprocessable(f"{what}: {name!r} is missing", field="source", hint="is the folder copied whole?")
    return path
