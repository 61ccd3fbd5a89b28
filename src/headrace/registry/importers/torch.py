"""PyTorch programs: TorchScript (``torch.jit.save``) and ``torch.export.save``. Told apart by what their zip holds.

A file of weights alone (``torch.save`` of a state_dict or a module) is no program: it is refused, with what its pickle
would call.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from headrace.core.errors import Unprocessable
from headrace.registry import pickles
from headrace.registry.importers.candidate import Asked, Candidate, name_of

Kind = Literal["torchscript", "torch-export"]
_EXPORT = "save it with torch.export.save(torch.export.export(model, example_inputs), 'model.pt2')"


def kind_of(path: Path) -> Kind:
    """Which of the two a file is. Raises Unprocessable when it is neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except OSError as error:
        raise Unprocessable(f"{path.name} cannot be read: {error.strerror}", field="source") from None
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            start = file.read(4)
        what = "damaged, perhaps cut short" if start[:2] == b"PK" else f"no PyTorch program{_found(path)}"
        raise Unprocessable(f"{path.name}: {what}", field="source", hint=_EXPORT) from None
    parts = [name.partition("/")[2] or name for name in names]
    if "archive_format" in parts or any(part.startswith("serialized_exported_program") for part in parts):
        return "torch-export"
    if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
        return "torchscript"
    raise Unprocessable(
        f"{path.name} holds weights and no program{_found(path)}",
        field="source",
        hint=f"with the model's code at hand, {_EXPORT}",
    )


def _found(path: Path) -> str:
    found = pickles.scan(path)
    return f"; as a pickle, {found}" if found.dangerous or found.unknown else ""


def read(path: Path, asked: Asked) -> Candidate:
    """The program as a candidate; TorchScript needs a signature, which it does not tell. Raises Unprocessable."""
    kind = kind_of(path)
    if kind == "torchscript" and asked.signature is None:
        raise Unprocessable(
            f"{path.name}: TorchScript does not say which datatypes and shapes it takes",
            field="signature",
            hint='give them: --signature FILE with {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}]}',
        )
    return Candidate(name_of(path.stem), path, path.name, "torch", asked.signature)
