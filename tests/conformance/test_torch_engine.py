"""The torch engine behind the port, as the other engines: it is true of itself, and what it cannot load it refuses.

Skipped by name without PyTorch: ``pip install torch``, or ``headrace[torch]``.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from headrace.core.errors import InvalidInput, Unprocessable
from headrace.core.schema import DATATYPES
from headrace.core.signature import Signature
from headrace.core.specs import EngineOptions
from headrace.registry.importers.candidate import Asked
from headrace.registry.importers.read import read
from headrace.server.engines.port import example
from tests import models, sources
from tests.conformance.test_engines import sample
from tests.models import Artifact, spec

torch = pytest.importorskip("torch", reason="SKIPPED tests of the torch engine: PyTorch is not installed")
programs = pytest.importorskip("tests.programs")

ARTIFACTS = {
    "torchscript": (lambda: programs.torchscript(), ["scores FP32 -1,2", "next INT64 -1"]),
    "torchscript-unnamed": (
        lambda: programs.torchscript(signature=Signature(programs.INPUTS, ())),
        ["output_0 FP32 -1,2", "output_1 INT64 -1"],
    ),
    "export": (lambda: programs.exported(), ["output_0 FP32 -1,2", "output_1 INT64 -1"]),
    "export-dict": (lambda: programs.exported(programs.Named), ["scores FP32 -1,2", "next INT64 -1"]),
}


@pytest.mark.parametrize("name", ARTIFACTS)
def test_signature_is_true(name, open_engine):
    make, outputs = ARTIFACTS[name]
    engine = open_engine(make())
    assert engine.signature == Signature(programs.INPUTS, tuple(map(spec, outputs)))
    for given in (example(engine.signature), sample(engine.signature, 5)):
        results = engine.run(given)
        for tensor, result in zip(engine.signature.outputs, results, strict=True):
            assert result.dtype == DATATYPES[tensor.datatype]
            assert result.flags.c_contiguous
            assert result.shape == (len(given[0]), *tensor.shape[1:])


@pytest.mark.parametrize("name", ARTIFACTS)
def test_answers_are_pytorchs_own_and_a_batch_is_its_rows(name, open_engine):
    engine = open_engine(ARTIFACTS[name][0]())
    batch = sample(engine.signature, 7)
    whole = engine.run(batch)
    with torch.inference_mode():
        want = programs.Scorer().eval()(*(torch.from_numpy(array.copy()) for array in batch))
    np.testing.assert_allclose(whole[0], want[0].numpy(), rtol=1e-5)
    np.testing.assert_array_equal(whole[1], batch[1] + 1)
    for row in range(7):
        alone = engine.run([array[row : row + 1] for array in batch])
        np.testing.assert_allclose(alone[0], whole[0][row : row + 1], rtol=1e-5)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_outputs_are_selected(name, open_engine):
    artifact = ARTIFACTS[name][0]()
    last = spec(ARTIFACTS[name][1][1]).name
    engine = open_engine(artifact, options=EngineOptions(outputs=(last,)))
    assert [tensor.name for tensor in engine.signature.outputs] == [last]
    batch = sample(engine.signature, 3)
    np.testing.assert_array_equal(engine.run(batch)[0], batch[1] + 1)
    with pytest.raises(InvalidInput, match="nothing_like_it") as caught:
        open_engine(artifact, options=EngineOptions(outputs=("nothing_like_it",)))
    assert caught.value.field == "options.outputs"


def test_arguments_changed_in_place_are_the_programs_own(open_engine):
    for artifact in (
        programs.torchscript(programs.InPlace, Signature(programs.INPUTS[:1], ())),
        programs.exported(programs.InPlace, (torch.ones(2, 30),)),
    ):
        engine = open_engine(artifact)
        (rows,) = batch = sample(engine.signature, 3)
        before = rows.copy()
        np.testing.assert_array_equal(engine.run(batch)[0], before * 2)
        np.testing.assert_array_equal(rows, before)


WRONG = {
    "output's datatype": (
        programs.INPUTS,
        (spec("scores FP64 -1,2"), spec("next INT64 -1")),
        "signature.outputs[0].datatype",
    ),
    "output's shape": (
        programs.INPUTS,
        (spec("scores FP32 -1,3"), spec("next INT64 -1")),
        "signature.outputs[0].shape",
    ),
    "outputs": (programs.INPUTS, (spec("scores FP32 -1,2"),), "signature.outputs"),
    "inputs": (programs.INPUTS[:1], (), "signature.inputs"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_a_signature_that_the_program_contradicts(kind, wrong, open_engine):
    inputs, outputs, field = WRONG[wrong]
    with pytest.raises(InvalidInput) as caught:
        open_engine(ARTIFACTS[kind][0](), signature=Signature(inputs, outputs))
    assert caught.value.field == field


def test_an_exported_program_knows_its_inputs(open_engine):
    with pytest.raises(InvalidInput) as caught:
        open_engine(programs.exported(), signature=Signature((spec("x FP64 -1,30"), spec("o INT64 -1")), ()))
    assert caught.value.field == "signature.inputs[0].datatype"
    names = Signature((spec("a FP32 -1,30"), spec("b INT64 -1")), (spec("c FP32 -1,2"), spec("d INT64 -1")))
    assert open_engine(programs.exported(), signature=names).signature == names


def test_torchscript_needs_a_signature(open_engine):
    with pytest.raises(InvalidInput, match="does not say") as caught:
        open_engine(programs.torchscript(), signature=None)
    assert caught.value.field == "signature"
    with pytest.raises(InvalidInput) as caught:
        open_engine(programs.torchscript(), signature=Signature((spec("x BYTES -1"), spec("y INT64 -1")), ()))
    assert caught.value.field == "signature.inputs[0].datatype"


@pytest.mark.parametrize("kind", ["torchscript", "export"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
def test_truncated(kind, share, open_engine):
    with pytest.raises(Unprocessable) as caught:
        open_engine(ARTIFACTS[kind][0]().truncated(share))
    assert caught.value.field == "digest"


@pytest.mark.parametrize("content", [b"", b"tree", b"PK\3\4", b"\x80\4", models.classifier_skops().content])
def test_what_is_no_program(content, open_engine):
    with pytest.raises(Unprocessable) as caught:
        open_engine(Artifact("torch", "model.pt", content, signature=programs.SIGNATURE))
    assert caught.value.field == "digest"


def test_weights_alone_are_no_program(open_engine, tmp_path):
    torch.save(programs.Scorer().state_dict(), tmp_path / "weights.pt")
    content = (tmp_path / "weights.pt").read_bytes()
    with pytest.raises(Unprocessable):
        open_engine(Artifact("torch", "model.pt", content, signature=programs.SIGNATURE))
    with pytest.raises(Unprocessable, match="holds weights and no program") as caught:
        read(tmp_path / "weights.pt", Asked(tmp_path))
    assert "torch.export.save" in (caught.value.hint or "")


@pytest.mark.parametrize("known", [True, False])
def test_a_pickle_in_a_program_does_not_run(known, open_engine, tmp_path):
    """PyTorch's own loader would run it: what it cannot read as tensors it reads as any pickle."""
    marker = tmp_path / "ran"
    artifact = programs.hostile(marker, known)
    with pytest.raises(
        Unprocessable, match=r"posix\.mkdir, which can run any code" if known else "does not load"
    ) as caught:
        open_engine(artifact)
    assert caught.value.field == ("options.trust" if known else "digest")
    assert not marker.exists()
    code = "import sys, torch; torch.export.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, artifact.named(tmp_path)], capture_output=True, timeout=60, check=False)
    assert marker.exists()  # so the check above looks at the right thing


def test_importers_tell_the_kinds_apart(tmp_path):
    script, export = programs.torchscript().named(tmp_path), programs.exported().named(tmp_path)
    with pytest.raises(Unprocessable, match="does not say which datatypes") as caught:
        read(script, Asked(tmp_path))
    assert caught.value.field == "signature"
    given = Asked(tmp_path, signature=programs.SIGNATURE)
    assert read(script, given).format == "torchscript"
    assert read(export, Asked(tmp_path)).format == "torch-export"
    with pytest.raises(Unprocessable, match="is torch-export, not torchscript"):
        read(export, given, "torchscript")


def test_imported_and_served(client, tmp_path):
    """Through a real replica: from a file, and from a Triton repository with its own names of the tensors."""
    config = """
        platform: "pytorch_libtorch"
        max_batch_size: 16
        input [{ name: "INPUT__0" data_type: TYPE_FP32 dims: 30 }, { name: "INPUT__1" data_type: TYPE_INT64 dims: [] }]
        output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: 2 }]
        output [{ name: "OUTPUT__1" data_type: TYPE_INT64 dims: [] }]
    """
    sources.triton_model(tmp_path, "libtorch", {1: {"model.pt": programs.torchscript().content}}, config)
    imports = {
        "exported": client.models.import_(programs.exported().named(tmp_path), name="exported"),
        "libtorch": client.models.import_(tmp_path / "libtorch"),
    }
    x, offset = sample(programs.SIGNATURE, 9)
    with torch.inference_mode():
        want = programs.Scorer().eval()(torch.from_numpy(x.copy()), torch.from_numpy(offset.copy()))[0].numpy()
    for name, result in imports.items():
        (imported,) = result.imported
        assert imported.version.engine == "torch"
        client.deploy(f"{name}@1", traffic=100)
        names = [tensor.name for tensor in imported.version.signature.inputs]
        answer = client.predict(name, dict(zip(names, (x, offset), strict=True)))
        np.testing.assert_allclose(next(iter(answer.outputs.values())), want, rtol=1e-5)
        client.undeploy(f"{name}@1", force=True)
    assert [t.name for t in imports["libtorch"].imported[0].version.signature.inputs] == ["INPUT__0", "INPUT__1"]


def test_threads_are_kept_to(tmp_path):
    """Left to itself, PyTorch takes every core."""
    code = """
import sys
from pathlib import Path
import torch
from headrace.server.engines.load import load
before = torch.get_num_threads()
load("torch", Path(sys.argv[1]), None, None, before + 1)
print(torch.get_num_threads() - before)
"""
    command = [sys.executable, "-c", code, programs.exported().save(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stdout.split()[-1] == b"1"
