"""Models written in Python: what they may be, what they may give, what they leave behind."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from headrace.core.errors import CallerError, InvalidInput, PlatformFault, Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.server.engines.load import load
from tests import models
from tests.models import Artifact, spec


def test_python_pickle_by_value(open_engine):
    class Doubler:
        inputs = (TensorSpec("x", "FP32", (-1,)),)
        outputs = (("y", "FP32", (-1,)),)

        def predict(self, inputs):
            return inputs["x"] * 2

    for made in (Doubler, Doubler()):
        artifact = Artifact("python", "m.pkl", cloudpickle.dumps(made), EngineOptions(trust=True))
        assert open_engine(artifact).run([np.ones(2, np.float32)])[0].tolist() == [2.0, 2.0]


def test_python_signature_from_the_version(open_engine):
    artifact = models.python_model("class Model:\n    def predict(self, inputs): return inputs['a']\n")
    with pytest.raises(InvalidInput) as caught:
        open_engine(artifact)
    assert caught.value.field == "signature"
    given = Signature((spec("a INT64 -1"),), (spec("b INT64 -1"),))
    engine = open_engine(artifact, signature=given)
    assert engine.signature == given
    assert engine.run([np.arange(3)])[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("x.astype('int32').astype(complex)", "complex128"),
        ("x[:, 0]", r"float32 \[2\] for 'y'"),
        ("{'z': x}", "no output 'y', only 'z'"),
        ("x.astype(str)", "for 'y'"),
        ("None", "for 'y'"),
        ("[[1], [2, 3]]", "inhomogeneous"),
    ],
)
def test_python_outputs_are_checked(returned, message, open_engine):
    engine = open_engine(models.python_echo(predict=f"return {returned}"))
    with pytest.raises((PlatformFault, ValueError), match=message):
        engine.run([np.ones((2, 1), np.float32)])


def test_python_outputs_are_converted_within_their_kind(open_engine):
    engine = open_engine(models.python_echo(predict="return x.astype('float64')[::-1].tolist()"))
    (result,) = engine.run([np.array([[1], [2]], np.float32)])
    assert result.dtype == np.float32
    assert result.tolist() == [[2.0], [1.0]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "no class Model"),
        ("class Model: pass", r"no method predict"),
        ("class Model:\n    inputs = 3\n    def predict(self, inputs): ...", r"Model.inputs is no list"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def", "SyntaxError"),
    ],
)
def test_python_sources_that_are_no_model(source, message, open_engine):
    with pytest.raises(CallerError, match=message):
        open_engine(models.python_model(source))


def test_python_load_that_raises(open_engine):
    with pytest.raises(Unprocessable, match=r"does not load: RuntimeError: no weights in weights\.bin"):
        open_engine(models.raises_at_load())


def test_python_fails_on_a_value_only(open_engine):
    engine = open_engine(models.fails_on(13.0))
    assert engine.run([np.ones((2, 1), np.float32)])[0].tolist() == [[1.0], [1.0]]
    with pytest.raises(ValueError, match="unlucky"):
        engine.run([np.array([[1], [13]], np.float32)])


@pytest.mark.parametrize("name", ["../outside.py", "/tmp/headrace-outside.py"])
def test_a_tar_stays_in_its_folder(name, open_engine):
    artifact = models.tar_of({"model.py": models.python_echo().content, name: b"x"})
    if name.startswith("/"):  # made relative, as tar itself does
        open_engine(artifact)
        assert not Path(name).exists()
        return
    with pytest.raises(Unprocessable, match="leads out of its folder"):
        open_engine(artifact)


def test_a_tar_without_model_py(open_engine):
    with pytest.raises(Unprocessable, match=r"no model\.py"):
        open_engine(models.tar_of({"readme.txt": b"hello"}))


def test_close_leaves_nothing(tmp_path, monkeypatch):
    artifact = models.python_folder()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = list(sys.path)
    engine = load("python", artifact.save(tmp_path), None, None).engine
    assert engine.run([np.ones((1, 1), np.float32)])[0].tolist() == [[4.0]]
    assert sys.path != before
    assert list(scratch.iterdir())
    engine.close()
    assert (list(scratch.iterdir()), sys.path) == ([], before)


def test_a_model_has_its_own_modules(open_engine):
    """Also after one in the same process whose modules had the same names."""
    source = models.python_echo(predict="import constant; return x * constant.VALUE").content
    for value in (2, 30):
        files = {"model.py": source, "constant.py": f"VALUE = {value}".encode()}
        engine = open_engine(models.tar_of(files))
        assert engine.run([np.ones((1, 1), np.float32)])[0].tolist() == [[value]]
        engine.close()
    assert "constant" not in sys.modules
