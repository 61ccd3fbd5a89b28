"""The steps around the model: each takes a dict of arrays, a row per text, and gives the same rows on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

import headrace

Arrays = dict[str, np.ndarray[Any, Any]]


class Count:
    """Words, hashed: needs no vocabulary, so training and serving cannot differ in it."""

    def __init__(self) -> None:
        self.vectorizer = HashingVectorizer(n_features=2048, alternate_sign=False, norm=None, stop_words="english")

    def predict(self, inputs: Arrays) -> np.ndarray[Any, Any]:
        try:
            texts = [text.decode() for text in inputs["text"]]
        except UnicodeDecodeError as error:
            raise headrace.errors.InvalidInput(f"text: not UTF-8, from byte {error.start} on") from None
        return self.vectorizer.transform(texts).toarray().astype(np.float32)


class Name:
    """The likeliest class by its name."""

    def load(self, folder: Path) -> None:
        self.labels = np.array((folder / "labels.txt").read_text().split(), object)

    def predict(self, inputs: Arrays) -> Arrays:
        scores = inputs["scores"]
        return {"label": self.labels[scores.argmax(1)], "score": scores.max(1)}
