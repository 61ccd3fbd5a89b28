"""The examination process: a line for a line, whatever models do to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions
from tests import models
from tests.models import Artifact

COMMAND = [sys.executable, "-m", "headrace.server.examine"]


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
    assert signature["error"]["field"] == "signature.outputs"
    assert engine["error"]["field"] == "engine"
    assert last["signature"]["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]


def test_what_models_print_stays_out(tmp_path):
    code, answers = ask(request(models.prints(), tmp_path), request(models.echo_onnx(), tmp_path))
    assert code == 0
    assert ["signature" in answer for answer in answers] == [True, True]


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
