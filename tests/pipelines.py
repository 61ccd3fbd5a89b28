"""Pipelines for the tests: folders as artifacts, and the models in them as a replica gets them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

from headrace.core.pipeline import FILE
from headrace.core.specs import EngineOptions, ServedPart
from headrace.server.engines.load import load
from tests import models
from tests.models import Artifact

WORDS = """
inputs = [{ name = "text", datatype = "BYTES", shape = [-1], example = "a b" }]
outputs = [{ name = "total", from = "join.total" }, { name = "upper", from = "shout.upper" }]

[[steps]]
name = "count"
python = "steps.py:count"
inputs = { text = "text" }
outputs = [{ name = "n", datatype = "FP32", shape = [-1, 1] }]

[[steps]]
name = "shout"
python = "steps.py:shout"
inputs = { text = "text" }
outputs = [
  { name = "upper", datatype = "BYTES", shape = [-1] },
  { name = "bangs", datatype = "FP32", shape = [-1, 1] },
]

[[steps]]
name = "more"
model = "more@1"
inputs = { x = "count.n" }

[[steps]]
name = "join"
python = "steps.py:Join"
inputs = { left = "more.y", right = "shout.bangs" }
outputs = [{ name = "total", datatype = "FP32", shape = [-1, 1] }]
"""
"""Two branches and their join: words + 5 (by an ONNX model), exclamation marks, and 100 of a file."""
STEPS = """
from pathlib import Path
import numpy as np
import headrace

def count(inputs):
    texts = inputs["text"]
    if any(b"crash" in text for text in texts):
        raise ValueError("crashed on request")
    if any(text == b"bad" for text in texts):
        raise headrace.errors.InvalidInput("text: bad words are not counted")
    return np.array([[len(text.split())] for text in texts], np.float32)

def shout(inputs):
    texts = inputs["text"]
    bangs = np.array([[text.count(b"!")] for text in texts], np.float32)
    texts[:] = [text.upper() for text in texts]  # in place: the other branch reads the same tensor
    return {"upper": texts, "bangs": bangs}

class Join:
    def load(self, folder):
        self.base = float((Path(folder) / "base.txt").read_text())

    def predict(self, inputs):
        inputs["left"] += inputs["right"] + self.base
        return inputs["left"]
"""
FILES = {FILE: WORDS, "steps.py": STEPS, "base.txt": "100"}


def tar(files: dict[str, str | bytes], folder: str = "") -> bytes:
    """Files as an uncompressed tar."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(folder + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


def pipeline(files: dict[str, str | bytes] | None = None, folder: str = "", **change: str | bytes) -> Artifact:
    """A pipeline's artifact: `WORDS`, or other files; `change`: of `FILES`, by name with `_` for the dot."""
    whole: dict[str, str | bytes] = {**(FILES if files is None else files)}
    whole |= {name.replace("_", "."): content for name, content in change.items()}
    return Artifact("pipeline", "words.tar", tar(whole, folder))


def part(reference: str, artifact: Artifact, folder: Path, options: EngineOptions | None = None) -> ServedPart:
    """A registered version as the control plane would hand it to a replica."""
    path = artifact.save(folder)
    loaded = load(artifact.engine, path, options or artifact.options, artifact.signature)
    signature = loaded.engine.signature
    loaded.engine.close()
    digest = hashlib.sha256(artifact.content).hexdigest()
    return ServedPart(reference, artifact.engine, str(path), digest, signature, loaded.options)


def more(folder: Path) -> ServedPart:
    """x FP32 [-1, 1] -> y: five more."""
    return part("more@1", models.echo_onnx(5.0), folder)


def step(name: str, kind: str, inputs: dict[str, str], outputs: str = "", **more: Any) -> str:
    """A step's TOML. `outputs`: ``y FP32 -1,1; z ...`` of Python."""
    wired = ", ".join(f'"{tensor}" = "{source}"' for tensor, source in inputs.items())
    lines = [f'name = "{name}"', kind, f"inputs = {{ {wired} }}"]
    if outputs:
        specs = [models.spec(text.strip()) for text in outputs.split(";")]
        tables = [f'{{ name = "{s.name}", datatype = "{s.datatype}", shape = {list(s.shape)} }}' for s in specs]
        lines.append(f"outputs = [{', '.join(tables)}]")
    return "\n".join(["[[steps]]", *lines, *(f"{key} = {value!r}" for key, value in more.items())])


def declaration(steps: list[str], output: str, given: str = 'name = "x", datatype = "FP32", shape = [-1, 1]') -> str:
    """A pipeline.toml of one input and one output, ``y``."""
    head = [f"inputs = [{{ {given} }}]", f'outputs = [{{ name = "y", from = "{output}" }}]']
    return "\n\n".join([*head, *steps])
