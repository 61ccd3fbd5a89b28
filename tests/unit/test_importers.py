"""Importers: what they make of real sources, and what they refuse of broken ones, by field and with the reason."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from headrace.core.errors import CallerError, InvalidInput, Unprocessable
from headrace.core.signature import Signature, TensorSpec
from headrace.registry.importers import gguf, huggingface
from headrace.registry.importers.candidate import Asked, Candidate, Found, inside, name_of
from headrace.registry.importers.read import read
from tests import models, sources


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    (tmp_path / "scratch").mkdir()
    return Asked(tmp_path / "scratch")


def only(found: Found) -> Candidate:
    (candidate,) = found.candidates
    assert not found.refusals
    return candidate


def refused(source: Path, asked: Asked, **options: Any) -> CallerError:
    """What is said of a source; never this machine's folders, beyond the name that was given."""
    with pytest.raises(CallerError) as caught:
        read(source, asked, **options)
    assert len(caught.value.message) < 600
    return caught.value


# ------------------------------------------------------------------------------------------------ MLflow
def test_mlflow_run(tmp_path, asked):
    """Of a model in a run's folder its metrics come too, the last value of each."""
    folder = sources.mlflow_sklearn(sources.in_a_run(tmp_path), run_id="5f0c1a", metadata={"owner": "growth"})
    found = read(folder, asked)
    assert found.format == "mlflow"
    made = only(found)
    assert (made.name, made.engine, made.file_name, made.trust) == ("churn", "sklearn", "model.skops", False)
    assert made.signature == Signature((TensorSpec("input", "FP64", (-1, 30)),), ())
    assert made.metrics == {"auc": 0.97}
    assert made.tags["mlflow.run_id"] == "5f0c1a"
    assert made.tags["team"] == "growth"
    assert made.tags["owner"] == "growth"
    assert "mlflow.user" not in made.tags
    assert made.tags["mlflow.columns"].startswith("column 0, column 1")


def test_mlflow_pickle_needs_trust(tmp_path, asked):
    folder = sources.mlflow_sklearn(tmp_path / "m", pickled=True)
    error = refused(folder, asked)
    assert error.field == "trust"
    assert "sklearn.linear_model" in error.message
    marker = tmp_path / "ran"
    (folder / "model.pkl").write_bytes(models.hostile_pickle(marker).content)
    error = refused(folder, asked)
    assert "mkdir, which can run any code" in error.message
    assert not marker.exists()
    made = only(read(folder, Asked(asked.scratch, trust=True)))
    assert made.trust
    assert made.engine == "sklearn"
    assert not marker.exists()


def test_mlflow_pyfunc_needs_trust_and_a_signature(tmp_path, asked):
    folder = sources.mlmodel(tmp_path / "m", {"python_function": {"loader_module": "mlflow.pyfunc.model"}})
    (folder / "python_model.pkl").write_bytes(models.hostile_pickle(tmp_path / "ran").content)
    error = refused(folder, asked)
    assert error.field == "trust"
    assert "mkdir" in error.message
    trusting = Asked(asked.scratch, trust=True)
    assert refused(folder, trusting).field == "signature"
    signature = {
        "inputs": sources.columns_of({"a": "double", "text": "string"}),
        "outputs": sources.tensor_of("int64", [-1]),
    }
    sources.mlmodel(folder, {"python_function": {"loader_module": "mlflow.pyfunc.model"}}, signature)
    made = only(read(folder, trusting))
    assert made.trust
    assert made.engine == "python"
    assert made.signature == Signature(
        (TensorSpec("a", "FP64", (-1,)), TensorSpec("text", "BYTES", (-1,))), (TensorSpec("output", "INT64", (-1,)),)
    )
    first = made.path.read_bytes()
    os.utime(folder / "MLmodel", (1, 1))
    made.path.unlink()
    assert only(read(folder, trusting)).path.read_bytes() == first  # the same folder, the same artifact
    assert not (tmp_path / "ran").exists()


MLFLOW_BROKEN = {
    "no YAML": ("flavors: [", "source", "no YAML"),
    "a list": ("- 1", "source", "expected a document"),
    "no flavours": ("flavors: {}", "flavors", "at least one"),
    "an object of Python's": ("flavors: !!python/object/apply:os.getcwd []", "source", "no YAML"),
    "unknown flavour": ("flavors: {spark: {}, mleap: {}}", "flavors", "no engine runs the flavour spark, mleap"),
    "no file named": ("flavors: {onnx: {}}", "source", "expected a file name"),
    "missing file": ("flavors: {xgboost: {data: model.ubj}}", "source", "'model.ubj' is missing"),
    "a file elsewhere": ("flavors: {lightgbm: {data: ../secret.txt}}", "source", "leads out of"),
    "an absolute file": ("flavors: {lightgbm: {data: /etc/hostname}}", "source", "leads out of"),
    "signature is no JSON": ("flavors: {onnx: {}}\nsignature: {inputs: '['}", "signature.inputs", "is no schema"),
    "signature is no text": ("flavors: {onnx: {}}\nsignature: {outputs: 3}", "signature.outputs", "JSON text"),
    "signature is a list": ("flavors: {onnx: {}}\nsignature: [1]", "signature", "expected inputs"),
    "a type without tensors": (
        'flavors: {onnx: {}}\nsignature: {inputs: \'[{"type": "datetime", "name": "t"}]\'}',
        "signature.inputs[0]",
        "datetime",
    ),
    "a dtype without tensors": (
        'flavors: {onnx: {}}\nsignature: {inputs: \'[{"type": "tensor", "tensor-spec": '
        '{"dtype": "complex64", "shape": [-1]}}]\'}',
        "signature.inputs[0]",
        "complex64",
    ),
}


@pytest.mark.parametrize("case", MLFLOW_BROKEN)
def test_broken_mlflow(case, tmp_path, asked):
    text, field, message = MLFLOW_BROKEN[case]
    (tmp_path / "secret.txt").write_text("tree")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "MLmodel").write_text(text)
    error = refused(tmp_path / "m", asked)
    assert error.field == field
    assert message in error.message


def test_mlflow_signature_that_names_other_tensors(tmp_path, asked):
    folder = sources.mlflow_onnx(tmp_path / "m", sources.tensor_of("float32", [-1, 64], "pixels"))
    error = refused(folder, asked)
    assert error.field == "signature.inputs"
    assert "names pixels, the model has x" in error.message


def test_mlflow_frame_of_several_types_is_a_pyfunc(tmp_path, asked):
    signature = {
        "inputs": sources.columns_of({"age": "long", "city": "string"}),
        "outputs": sources.tensor_of("int64", [-1]),
    }
    folder = sources.mlflow_sklearn(tmp_path / "m", signature=signature)
    assert refused(folder, asked).field == "trust"
    assert only(read(folder, Asked(asked.scratch, trust=True))).engine == "python"


# ------------------------------------------------------------------------------------------------ Triton
def test_triton_repository(tmp_path, asked):
    found = read(sources.triton_repository(tmp_path / "repository"), asked)
    assert found.format == "triton"
    assert [(c.name, c.tags["triton.version"], c.engine) for c in found.candidates] == [
        ("fraud", "3", "onnx"),
        ("fraud", "10", "onnx"),  # by number, not by text
        ("plain", "1", "onnx"),
    ]
    fraud, _, plain = found.candidates
    assert (plain.signature, plain.batch_max, plain.outputs) == (None, None, ())
    assert fraud.signature == Signature(
        (TensorSpec("x", "FP32", (-1, 30)),), (TensorSpec("probabilities", "FP32", (-1, 2)),)
    )
    assert (fraud.batch_max, fraud.outputs) == (8, ("probabilities",))
    assert any("dynamic_batching" in note for note in fraud.notes)
    assert any("labels.txt" in note for note in fraud.notes)
    (python,) = found.refusals
    assert python.name == "steps"
    assert "triton_python_backend_utils" in python.error.message
    assert [c.name for c in read(tmp_path / "repository" / "fraud", asked_again(asked)).candidates] == ["fraud"] * 2


def asked_again(asked: Asked) -> Asked:
    folder = asked.scratch / "again"
    folder.mkdir()
    return Asked(folder)


def test_triton_weights_in_other_files(tmp_path, asked):
    folder = tmp_path / "r" / "net"
    sources.save_external(sources.network(), folder / "1" / "model.onnx")
    made = only(read(tmp_path / "r", asked))
    x = np.ones((2, 64), np.float32)
    want = sources.answer(sources.network().SerializeToString(), x=x)
    np.testing.assert_array_equal(sources.answer(made.path.read_bytes(), x=x)[0], want[0])


def config(**change: str) -> str:
    parts = {
        "platform": 'platform: "onnxruntime_onnx"',
        "input": 'input { name: "x" data_type: TYPE_FP32 dims: 30 }',
        "output": 'output { name: "label" data_type: TYPE_INT64 dims: -1 }',
        **change,
    }
    return "\n".join(parts.values())


TRITON_BROKEN = {
    "no text format": (config(platform="platform = 3"), "source", "line 1"),
    "cut short": ("input [ { name: 'x'", "source", "line 1"),
    "another backend": ('backend: "openvino"', "backend", "'openvino': no engine here stands for it"),
    "a plan": ('platform: "tensorrt_plan"', "backend", "built for one GPU"),
    "an ensemble": ('platform: "ensemble"', "backend", "names other models"),
    "an unknown type": (config(input='input { name: "x" data_type: TYPE_BF16 dims: 30 }'), "input[0]", "TYPE_BF16"),
    "an unknown input": (config(input='input { name: "z" data_type: TYPE_FP32 dims: 30 }'), "input", "has x"),
    "a batch that is no number": (config(more="max_batch_size: -1"), "max_batch_size", "-1"),
    "a file that is not there": (config(more='default_model_filename: "other.onnx"'), "source", "is missing"),
    "a file elsewhere": (config(more='default_model_filename: "../../x/1/model.onnx"'), "source", "leads out of"),
}


@pytest.mark.parametrize("case", TRITON_BROKEN)
def test_broken_triton(case, tmp_path, asked):
    text, field, message = TRITON_BROKEN[case]
    sources.triton_model(tmp_path, "x", {1: {"model.onnx": models.classifier_onnx().content}}, text)
    found = read(tmp_path / "x", asked)
    (refusal,) = found.refusals
    assert not found.candidates
    assert refusal.error.field == field
    assert message in refusal.error.message


def test_triton_without_versions_or_files(tmp_path, asked):
    sources.triton_model(tmp_path / "r", "empty", {}, config())
    sources.triton_model(tmp_path / "r", "hollow", {1: {"readme.md": b"?"}})
    reasons = {item.name: item.error.message for item in read(tmp_path / "r", asked).refusals}
    assert "no version" in reasons["empty"]
    assert "no model file" in reasons["hollow"]


def test_triton_model_that_does_not_batch(tmp_path, asked):
    """Its first dimension is its own: requests must not be joined along it."""
    sources.triton_model(tmp_path, "x", {1: {"model.onnx": models.echo_onnx().content}}, config(
        input='input { name: "x" data_type: TYPE_FP32 dims: [-1, 1] }',
        output='output { name: "y" data_type: TYPE_FP32 dims: [-1, 1] }',
    ))  # fmt: skip
    made = only(read(tmp_path / "x", asked))
    assert made.batch_max == 1
    assert made.signature == Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),))


# ------------------------------------------------------------------------------------------------ Hugging Face, GGUF
BERT = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}


def test_hub_folder_with_an_onnx_export(tmp_path, asked):
    folder = sources.hub_folder(
        tmp_path / "models--org--tiny bert" / "snapshots" / "abc",
        BERT,
        {"tokenizer.json": b"{}", "onnx/model_int8.onnx": b"?"},
    )
    sources.save_external(sources.network(), folder / "onnx" / "model.onnx")
    made = only(read(folder, asked))
    assert (made.name, made.engine) == ("tiny-bert", "onnx")
    assert made.tags["huggingface.architecture"] == "BertForSequenceClassification"
    assert any("tokenizer" in note for note in made.notes)
    assert any("model_int8.onnx" in note for note in made.notes)


def test_hub_cache_of_links(tmp_path, asked):
    """The hub's cache keeps blobs and links to them: a link is the user's own doing, not the model's."""
    folder = sources.hub_folder(tmp_path / "m", BERT)
    sources.save_external(sources.network(), tmp_path / "blobs" / "model.onnx")
    for blob in (tmp_path / "blobs").iterdir():
        (folder / blob.name).symlink_to(blob)
    made = only(read(folder, asked))
    assert made.path.stat().st_size > 64 * 32 * 4


def test_transformers_weights_are_told_and_refused(tmp_path, asked):
    folder = sources.hub_folder(tmp_path / "m", {"architectures": ["LlamaForCausalLM"]})
    safetensors.numpy.save_file(
        {"a": np.ones((1000, 2000), np.float16), "b": np.ones(10, np.float32)}, folder / "model.safetensors"
    )
    error = refused(folder, asked)
    assert "LlamaForCausalLM, 2 M parameters, mostly F16, in 1 safetensors file(s)" in error.message
    assert "optimum-cli" in (error.hint or "")
    assert huggingface.weights(folder / "model.safetensors") == (2_000_010, "F16")
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 7, 8, 60, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        assert refused(folder, asked).message.startswith("model.safetensors: ")


def test_hub_folder_of_pickles_or_nothing(tmp_path, asked):
    folder = sources.hub_folder(tmp_path / "m", BERT)
    assert "no weights" in refused(folder, asked).message
    (folder / "pytorch_model.bin").write_bytes(models.hostile_pickle(tmp_path / "ran").content)
    assert "mkdir, which can run any code" in refused(folder, asked).message
    (folder / "config.json").write_text("[")
    assert "no JSON object" in refused(folder, asked).message


def test_hub_folder_of_scikit_learn(tmp_path, asked):
    described = {"sklearn": {"model": {"file": "model.skops"}, "model_format": "skops"}}
    folder = sources.hub_folder(tmp_path / "m", described)
    assert "missing" in refused(folder, asked).message
    (folder / "model.skops").write_bytes(models.classifier_skops().content)
    assert only(read(folder, asked)).engine == "sklearn"
    (folder / "config.json").write_text(json.dumps({"sklearn": {"model": {"file": "model.pkl"}}}))
    (folder / "model.pkl").write_bytes(pickle.dumps(models.sklearn_classifier()))
    assert refused(folder, asked).field == "trust"


def test_gguf_is_told_and_refused(tmp_path, asked):
    path = sources.gguf_file(tmp_path / "tiny.gguf")
    header = gguf.read(path)
    assert (header.architecture, header.parameters, header.types) == ("llama", 384, {"F16": 192, "F32": 192})
    assert header.metadata["tokenizer.ggml.tokens"] == ["<s>", "hello", "\u00e9"]
    assert header.metadata["llama.context_length"] == 2048
    for source in (path, tmp_path / "folder"):
        if source != path:
            source.mkdir()
            path.rename(source / "tiny.gguf")
        error = refused(source, asked)
        assert "llama 'tiny', 384 parameters, mostly F16, context of 2048 tokens" in error.message
        assert "LLM engine" in error.message


def test_no_cut_or_bent_gguf_is_taken_for_whole(tmp_path):
    whole = sources.gguf_file(tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "cut"
    for size in range(0, len(whole) - 1024, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(Unprocessable, match="damaged"):
            gguf.read(path)
    for at, value in ((4, 99), (8, 255), (15, 255), (23, 255), (31, 255)):
        path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
        with pytest.raises(Unprocessable, match="damaged"):
            gguf.read(path)


# ------------------------------------------------------------------------------------------------ any source
def test_what_is_no_source(tmp_path, asked):
    assert refused(tmp_path / "none", asked).field == "source"
    assert refused(tmp_path, asked, format="keras").field == "format"
    (tmp_path / "model.txt").write_text("tree")
    error = refused(tmp_path / "model.txt", asked)
    assert "headrace models push" in (error.hint or "")
    for format in ("mlflow", "triton", "huggingface"):
        assert refused(tmp_path / "model.txt", asked, format=format).field == "source"
    for format in ("gguf", "torchscript", "torch-export"):
        assert refused(tmp_path, asked, format=format).field == "source"
    (tmp_path / "empty").mkdir()
    for format in ("auto", "mlflow", "triton", "huggingface", "onnx"):
        assert refused(tmp_path / "empty", asked, format=format).field == "source"
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 and no more")
    assert "cut short" in refused(tmp_path / "model.pt", asked).message


@pytest.mark.parametrize("name", ["", ".", "..", "a/../../b", "/etc/hostname", "..\\b", None, 3, "a\0b"])
def test_no_name_leads_out_of_the_folder(name, tmp_path):
    (tmp_path / "b").write_text("secret")
    (tmp_path / "m").mkdir()
    with pytest.raises(Unprocessable):
        inside(tmp_path / "m", name, "data")


@pytest.mark.parametrize(
    ("text", "name"),
    [("churn", "churn"), ("my model (1)", "my-model-1"), ("..", "model"), ("\u00e9t\u00e9", "t"), ("a" * 99, "a" * 63)],
)
def test_names(text, name):
    assert name_of(text) == name


def test_a_signature_for_what_tells_none(tmp_path, asked):
    given = Signature((TensorSpec("x", "FP32", (5, 1)),), ())
    path = tmp_path / "echo.onnx"
    path.write_bytes(models.echo_onnx().content)
    assert only(read(path, Asked(asked.scratch, signature=given))).signature == given
    with pytest.raises(InvalidInput):
        read(path, asked, format="mlflow")
