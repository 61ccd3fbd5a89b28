"""PyTorch programs that tests import and serve. Only for tests that have PyTorch; seeded, small."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from headrace.core.signature import Signature, TensorSpec
from tests import models
from tests.models import Artifact


class Scorer(torch.nn.Module):
    """x [-1,30], offset [-1] -> scores [-1,2] and a total [-1]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(torch.nn.Linear(30, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.softmax(self.layers(x / 100), dim=1)
        return scores, offset + 1


class Named(Scorer):
    """The same with a dict of outputs."""

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        scores = torch.softmax(self.layers(x / 100), dim=1)
        return {"scores": scores, "next": offset + 1}


class InPlace(torch.nn.Module):
    """x [-1,30] -> x * 2, computed in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


INPUTS = (TensorSpec("x", "FP32", (-1, 30)), TensorSpec("offset", "INT64", (-1,)))
SIGNATURE = Signature(INPUTS, (TensorSpec("scores", "FP32", (-1, 2)), TensorSpec("next", "INT64", (-1,))))
EXAMPLE = (torch.ones(2, 30), torch.ones(2, dtype=torch.int64))


def torchscript(module: Callable[[], torch.nn.Module] = Scorer, signature: Signature | None = SIGNATURE) -> Artifact:
    """The module as TorchScript, with the signature that it does not tell."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module().eval()), buffer)
    return Artifact("torch", "model.pt", buffer.getvalue(), signature=signature)


def exported(module: Callable[[], torch.nn.Module] = Scorer, example: tuple[Any, ...] = EXAMPLE) -> Artifact:
    """The module as ``torch.export`` saves it, its first dimension free."""
    dynamic = tuple({0: Dim.DYNAMIC} for _ in example)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module().eval(), example, dynamic_shapes=dynamic), buffer)
    return Artifact("torch", "model.pt2", buffer.getvalue())


class _Unknown:
    """Makes the folder too, by a function that no scanner's list has."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.marker,)


def hostile(marker: Path, known: bool) -> Artifact:
    """An exported program whose example inputs are a pickle that makes the folder `marker`."""
    pickled = models.hostile_pickle(marker).content if known else pickle.dumps(_Unknown(marker))
    buffer = io.BytesIO()
    inner = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(exported().content)) as given,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as made,
    ):
        for item in given.infolist():
            content = given.read(item)
            if item.filename.endswith("sample_inputs/model.pt"):
                with zipfile.ZipFile(inner, "w", zipfile.ZIP_STORED) as sample:
                    for name, data in {
                        "archive/data.pkl": pickled,
                        "archive/version": b"3\n",
                        "archive/byteorder": b"little",
                    }.items():
                        sample.writestr(name, data)
                content = inner.getvalue()
            made.writestr(item.filename, content)
    return Artifact("torch", "model.pt2", buffer.getvalue())
