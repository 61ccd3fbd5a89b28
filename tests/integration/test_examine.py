"""The examination process: a line for a line, whatever models do to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions
from tests import models
from tests.models import Artifact

COMMAND = [sys.executable, "-m", "headrace.server.examine"]


def convolution_onnx() -> Artifact:
    """x FP32 [-1,3,-1,-1], an image of at least 7 x 7 -> y FP32 [-1,2]."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[7, 7]),
        helper.make_node("ReduceMean", ["c"], ["y"], axes=[2, 3], keepdims=0),
    ]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 3, 7, 7], np.full(294, 0.01))
    x = value("x", TensorProto.FLOAT, ["rows", 3, "height", "width"])
    content = models.onnx_graph(nodes, [x], [value("y", TensorProto.FLOAT, ["rows", 2])], [weights])
    return Artifact("onnx", "convolution.onnx", content)


def request(artifact: Artifact, folder: Path, **change: Any) -> bytes:
    fields = {
        "engine": artifact.engine,
        "path": str(artifact.save(folder)),
        "file_name": artifact.file_name,
        "options": artifact.options,
        "signature": artifact.signature,
    }
    return msgspec.json.encode(fields | change)


def ask(*requests: bytes) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and answers of a process that is given the requests."""
    done = subprocess.run(COMMAND, input=b"\n".join(requests) + b"\n", capture_output=True, timeout=60)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_line_for_a_line(tmp_path):
    good = models.classifier_xgboost()
    selected = EngineOptions(outputs=("label",), nan="allow", batch_max=9)
    other = {"inputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}], "outputs": []}
    code, answers = ask(
        request(good, tmp_path),
        request(models.classifier_onnx(), tmp_path, options=selected),
        b"no json",
        b'{"engine": "onnx"}',
        request(good, tmp_path, options={"batch_limit": 3}),
        request(models.echo_onnx(), tmp_path, signature=other),
        request(models.echo_onnx(), tmp_path, engine="tensorflow"),
        request(models.echo_onnx(), tmp_path),
    )
    assert code == 0
    first, second, no_json, no_path, option, signature, engine, last = answers
    assert msgspec.convert(first["signature"], Signature).inputs[0].shape == (-1, 30)
    assert msgspec.convert(first["options"], EngineOptions).nan == "allow"
    assert [output["name"] for output in second["signature"]["outputs"]] == ["label"]
    assert msgspec.convert(second["options"], EngineOptions) == selected
    assert "not a request" in no_json["error"]["message"]
    assert "`path`" in no_path["error"]["message"]
    assert "`batch_limit`" in option["error"]["message"]
    assert signature["error"]["field"] == "signature.inputs"
    assert engine["error"]["field"] == "engine"
    assert last["signature"]["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]


def test_what_models_print_stays_out(tmp_path):
    code, answers = ask(request(models.prints(), tmp_path), request(models.echo_onnx(), tmp_path))
    assert code == 0
    assert ["signature" in answer for answer in answers] == [True, True]


def test_a_model_cannot_read_the_requests(tmp_path):
    reader = models.python_echo(load="assert sys.stdin.read() == ''; assert os.read(0, 1) == b''")
    longer_than_what_is_read_ahead = b" " * (1 << 20)
    code, answers = ask(
        request(reader, tmp_path), longer_than_what_is_read_ahead, request(models.echo_onnx(), tmp_path)
    )
    assert code == 0
    assert ["signature" in answer for answer in answers] == [True, False, True]


def test_sizes_that_the_example_must_have(tmp_path):
    """A model of images of any size is tried on one it can take; what wants more says how to get it."""
    long = models.python_model("""
        class Model:
            inputs = [("x", "FP32", (-1, -1))]
            outputs = [("y", "FP32", (-1,))]

            def predict(self, inputs):
                return inputs["x"][:, 99]
    """)
    fixed = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 100]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    }
    code, answers = ask(
        request(convolution_onnx(), tmp_path),
        request(long, tmp_path),
        request(long, tmp_path, signature=fixed),
    )
    assert code == 0
    assert answers[0]["signature"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]
    assert "fixes the free dimensions" in answers[1]["error"]["hint"]
    assert answers[2]["signature"] == fixed


def test_refusals_are_short_and_say_nothing_of_the_machine(tmp_path):
    marker = tmp_path / "ran"
    bad = {
        "raises at load": (models.raises_at_load(), "model.py: the python model does not load: RuntimeError"),
        "raises at warm-up": (models.raises_at_warm_up(), "fails on its first run: RuntimeError: cold"),
        "wrong type": (models.python_echo(predict="return x * 1j"), "the model gave complex64 [1, 1] for 'y'"),
        "exit at load": (models.python_echo(load="sys.exit(0)"), "SystemExit: 0"),
        "untrusted": (models.hostile_pickle(marker), "is a pickle"),
        "onnx": (models.classifier_onnx().truncated(), "the onnx model does not load"),
        "ubj": (models.classifier_xgboost(1, "ubj").truncated(), "the model is damaged: cut short"),
        "json": (models.classifier_xgboost().truncated(), "the xgboost model does not load"),
        "text": (models.classifier_lightgbm().truncated(), "cut short"),
        "skops": (models.classifier_skops().truncated(), "the sklearn model does not load"),
    }
    code, answers = ask(*[request(artifact, tmp_path) for artifact, _ in bad.values()])
    assert code == 0
    assert len(answers) == len(bad)
    for (name, (_, message)), answer in zip(bad.items(), answers, strict=True):
        error = answer["error"]
        assert message in error["message"], name
        assert error["field"], name
        assert len(error["message"]) < 500
        for telling in ("Traceback", str(tmp_path), sys.prefix, "/srv/secret", "/workspace"):
            assert telling not in error["message"]
    assert not marker.exists()


@pytest.mark.parametrize("make", [models.exits_at_load, models.exits_at_warm_up])
def test_a_model_that_takes_the_process_down_gives_no_answer(make, tmp_path):
    code, answers = ask(request(models.echo_onnx(), tmp_path), request(make(), tmp_path))
    assert code == 9
    assert len(answers) == 1
