"""The steps around the model: each takes a dict of arrays, a row per photograph, and gives the same rows on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import headrace

Arrays = dict[str, np.ndarray[Any, Any]]


def decode(inputs: Arrays) -> np.ndarray[Any, Any]:
    """Photographs as the model was trained to see them: the middle of 256 x 256, blue first, means taken off."""
    return np.stack([_pixels(image) for image in inputs["image"]])


def _pixels(image: bytes) -> np.ndarray[Any, Any]:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            middle = opened.convert("RGB").resize((256, 256)).crop((16, 16, 240, 240))
    except (OSError, Image.DecompressionBombError) as error:
        raise headrace.errors.InvalidInput(
            f"image: {len(image)} bytes that are no image ({type(error).__name__})"
        ) from None
    return np.asarray(middle, np.float32)[:, :, ::-1] - np.array([104, 117, 123], np.float32)


class Name:
    """The likeliest class by its name."""

    def load(self, folder: Path) -> None:
        self.labels = np.array((folder / "labels.txt").read_text().split(), object)

    def predict(self, inputs: Arrays) -> Arrays:
        scores = inputs["scores"]
        return {"label": self.labels[scores.argmax(1)], "score": scores.max(1)}
