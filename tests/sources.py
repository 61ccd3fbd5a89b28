"""Sources that tests import: folders as other tools write them, with models that those tools' libraries saved.

MLflow itself is no dependency of the tests. The ``MLmodel`` texts are those that MLflow 3.17 writes; the tests of
`tests/integration/test_mlflow_itself.py` run where it is installed, and hold that it still does.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from tests import models

COLUMNS = [f"column {k}" for k in range(30)]


# ------------------------------------------------------------------------------------------------ MLflow
def columns_of(kinds: dict[str, str]) -> str:
    """MLflow's text of a table: name -> type."""
    return json.dumps([{"type": kind, "name": name, "required": True} for name, kind in kinds.items()])


def tensor_of(dtype: str, shape: Sequence[int], name: str | None = None) -> str:
    """MLflow's text of one tensor."""
    item: dict[str, Any] = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}
    return json.dumps([{"name": name, **item} if name else item])


TABLE = {
    "inputs": columns_of(dict.fromkeys(COLUMNS, "double")),
    "outputs": tensor_of("int64", [-1]),
    "params": None,
}


def mlmodel(folder: Path, flavours: dict[str, Any], signature: dict[str, Any] | None = None, **more: Any) -> Path:
    """A folder with an ``MLmodel``; the files that it names are the caller's to write."""
    folder.mkdir(parents=True, exist_ok=True)
    loader = {"loader_module": f"mlflow.{next(iter(flavours), 'pyfunc')}", "python_version": "3.11.7"}
    document: dict[str, Any] = {
        "flavors": {**flavours, "python_function": {**loader, **flavours.get("python_function", {})}},
        "mlflow_version": "3.17.2",
        "model_id": None,
        "model_uuid": "37b1c444255245649a8d55ed7427d60a",
        "utc_time_created": "2026-11-24 13:59:11.724931",
        **({"signature": signature} if signature else {}),
        **more,
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


def mlflow_sklearn(folder: Path, pickled: bool = False, **more: Any) -> Path:
    """The scikit-learn classifier, as skops or as a pickle."""
    name = "model.pkl" if pickled else "model.skops"
    flavour = {
        "pickled_model": name,
        "serialization_format": "cloudpickle" if pickled else "skops",
        "sklearn_version": "1.9.1",
        "code": None,
    }
    more.setdefault("signature", TABLE)
    mlmodel(folder, {"sklearn": flavour}, **more)
    content = pickle.dumps(models.sklearn_classifier()) if pickled else models.classifier_skops().content
    (folder / name).write_bytes(content)
    return folder


def mlflow_xgboost(folder: Path) -> Path:
    """The XGBoost classifier."""
    flavour = {"data": "model.ubj", "model_class": "xgboost.sklearn.XGBClassifier", "model_format": "ubj"}
    mlmodel(folder, {"xgboost": flavour}, TABLE)
    models.xgboost_classifier().save_model(folder / "model.ubj")
    return folder


def mlflow_lightgbm(folder: Path) -> Path:
    """The LightGBM booster."""
    mlmodel(folder, {"lightgbm": {"data": "model.lgb", "model_class": "lightgbm.basic.Booster"}}, TABLE)
    models.lightgbm_classifier().save_model(folder / "model.lgb")
    return folder


def mlflow_onnx(folder: Path, inputs: str = tensor_of("float32", [-1, 64], "x")) -> Path:
    """The ONNX network with its weights in another file, as MLflow saves it with ``save_as_external_data``."""
    signature = {"inputs": inputs, "outputs": tensor_of("float32", [-1, 8], "y"), "params": None}
    mlmodel(folder, {"onnx": {"data": "model.onnx", "providers": ["CPUExecutionProvider"]}}, signature)
    save_external(network(), folder / "model.onnx")
    return folder


def in_a_run(folder: Path) -> Path:
    """Where MLflow's store of files keeps the model of a run: beside the run's metrics and tags."""
    run = folder / "0" / "5f0c1a"
    for name, text in {
        "meta.yaml": "run_id: 5f0c1a\n",
        "metrics/auc": "1764000000000 0.91 0\n1764000001000 0.97 1\n",
        "metrics/broken": "1764000000000 nan 0\n",
        "tags/team": "growth",
        "tags/mlflow.user": "somebody",
    }.items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return run / "artifacts" / "churn"


# ------------------------------------------------------------------------------------------------ ONNX
def network(branches: bool = True) -> onnx.ModelProto:
    """x FP32 [-1,64] -> y FP32 [-1,8]: two layers. With `branches` the second lies in one, so that weights lie in a
    subgraph too; onnxruntime alone cannot open that with its weights in other files, it loses the folder."""
    random = np.random.default_rng(1)

    def weights(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    def value(name: str, *shape: int | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    def second(name: str) -> onnx.GraphProto:
        layer = weights(f"w_{name}", 32, 8)
        node = helper.make_node("MatMul", ["h", layer.name], [name])
        return helper.make_graph([node], name, [], [value(name)], [layer])

    nodes = [helper.make_node("MatMul", ["x", "w1"], ["z"]), helper.make_node("Tanh", ["z"], ["h"])]
    constants = [weights("w1", 64, 32)]
    if branches:
        constants.append(numpy_helper.from_array(np.array(True), "condition"))
        nodes.append(helper.make_node("If", ["condition"], ["y"], then_branch=second("a"), else_branch=second("b")))
    else:
        nodes += second("y").node
        constants += second("y").initializer
    graph = helper.make_graph(nodes, "g", [value("x", None, 64)], [value("y", None, 8)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def save_external(model: onnx.ModelProto, path: Path, one_file: bool = True) -> Path:
    """Save with all weights in other files, as ``onnx.save(..., save_as_external_data=True)`` does."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    convert_model_to_external_data(
        copied, all_tensors_to_one_file=one_file, location=f"{path.name}_data" if one_file else None, size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(copied, path)
    return path


def answer(model: bytes | str, **inputs: Any) -> list[Any]:
    """What onnxruntime answers by itself."""
    import onnxruntime

    found: list[Any] = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, inputs)
    return found


# ------------------------------------------------------------------------------------------------ Triton
TRITON_CLASSIFIER = """
# a comment
name: "fraud"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "x", data_type: TYPE_FP32, dims: [ 30 ] }
]
output [
  { name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" }
]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
"""


def triton_model(repository: Path, name: str, versions: dict[int, dict[str, bytes]], config: str | None = None) -> Path:
    """A model of a repository: version -> file name -> content."""
    folder = repository / name
    folder.mkdir(parents=True)
    for number, files in versions.items():
        (folder / str(number)).mkdir()
        for file_name, content in files.items():
            (folder / str(number) / file_name).write_bytes(content)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    return folder


def triton_repository(repository: Path) -> Path:
    """Three models: two versions with a configuration, one without, and one of the python backend."""
    classifiers = {n: {"model.onnx": models.classifier_onnx(k).content} for k, n in ((1, 3), (2, 10))}
    triton_model(repository, "fraud", classifiers, TRITON_CLASSIFIER)
    triton_model(repository, "plain", {1: {"model.onnx": models.echo_onnx(1.0).content}})
    triton_model(repository, "steps", {1: {"model.py": b"import triton_python_backend_utils\n"}}, 'backend: "python"')
    return repository


# ------------------------------------------------------------------------------------------------ Hugging Face, GGUF
def hub_folder(folder: Path, config: dict[str, Any], files: Mapping[str, bytes] = MappingProxyType({})) -> Path:
    """A directory of the hub: its configuration, and files by name."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return folder


def gguf_file(path: Path) -> Path:
    """A small GGUF file by the `gguf` package: two tensors, text, numbers and an array among its metadata."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(2048)
    writer.add_token_list(["<s>", "hello", "\u00e9"])
    writer.add_rope_freq_base(1e4)
    writer.add_tensor("token_embd.weight", np.ones((3, 64), np.float16))
    writer.add_tensor("output.weight", np.ones((3, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
