"""docs/engines.md: its snippets run, and what they save is served."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.core.errors import InvalidInput
from headrace.core.specs import EngineOptions
from headrace.server.engines.load import DEFAULTS, load
from headrace.server.engines.port import example

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"
TEXT = PAGE.read_text()
SAVED = {
    "model.ubj": ("xgboost", None, ["probabilities"]),
    "model.txt": ("lightgbm", None, ["probabilities"]),
    "model.skops": ("sklearn", None, ["label", "probabilities"]),
    "model.onnx": ("onnx", None, ["label", "probabilities"]),
    "model.py": ("python", None, ["total", "text"]),
    "model.tar.gz": ("python", None, ["total", "text"]),
    "doubler.pkl": ("python", EngineOptions(trust=True), ["y"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's snippets ran, in order, in one namespace."""
    folder = tmp_path_factory.mktemp("page")
    names: dict[str, Any] = {"__name__": "__page__"}  # cloudpickle takes classes of a module that is not there by value
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        for source in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
            file = re.match(r"# file: (\S+)\n", source)
            if file:
                Path(file[1]).write_text(source)
            else:
                exec(compile(source, str(PAGE), "exec"), names)
    return folder


@pytest.mark.parametrize("name", SAVED)
def test_what_the_page_saves_is_served(name, folder):
    engine_name, options, outputs = SAVED[name]
    engine = load(engine_name, folder / name, options, None, 1).engine
    try:
        assert [tensor.name for tensor in engine.signature.outputs] == outputs
        assert all(len(result) == 3 for result in engine.run(example(engine.signature, rows=3)))
    finally:
        engine.close()


def test_the_page_saves_nothing_else(folder):
    assert {path.name for path in folder.iterdir()} == set(SAVED)


def test_the_python_model_refuses_by_itself(folder):
    engine = load("python", folder / "model.py", None, None).engine
    total, text = engine.run([np.ones((2, 3), np.float32)])
    assert total.tolist() == [6.0, 6.0]
    assert text.tolist() == [b"6", b"6"]
    with pytest.raises(InvalidInput, match="negative"):
        engine.run([-np.ones((1, 3), np.float32)])
    engine.close()


def test_every_engine_and_option_is_on_the_page():
    for name in (*DEFAULTS, *(field.name for field in msgspec.structs.fields(EngineOptions))):
        assert f"| `{name}` |" in TEXT
