"""Artifacts that tests push, deploy and break. Seeded, built once per session, small.

An `Artifact` is content; `save` makes it a file without an extension, as the artifact store does.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import tarfile
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import onnx
import skops.io
import xgboost as xgb
from onnx import TensorProto, helper
from sklearn.datasets import load_breast_cancer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions


@dataclass(frozen=True)
class Artifact:
    """A model file, and how to push it."""

    engine: str
    file_name: str
    content: bytes
    options: EngineOptions | None = None
    signature: Signature | None = None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def save(self, folder: Path) -> Path:
        """Write it into the folder under its digest."""
        path = folder / self.digest
        path.write_bytes(self.content)
        return path

    def named(self, folder: Path) -> Path:
        """Write it into the folder under its own name, as a user has it."""
        path = folder / self.file_name
        path.write_bytes(self.content)
        return path

    def truncated(self, share: float = 0.5) -> Artifact:
        """The same with only the first part of its content."""
        content = self.content[: int(len(self.content) * share)]
        return Artifact(self.engine, self.file_name, content, self.options, self.signature)


def spec(text: str) -> TensorSpec:
    """``x FP32 -1,30`` as a TensorSpec."""
    name, datatype, shape = text.split()
    return TensorSpec(name, datatype, tuple(map(int, shape.split(","))))


@functools.cache
def breast_cancer() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """569 rows of 30 features (FP32), and their labels."""
    x, y = load_breast_cancer(return_X_y=True)
    return x.astype(np.float32), y


# ------------------------------------------------------------------------------------------------ trees
@functools.cache
def xgboost_classifier(version: int = 1) -> xgb.XGBClassifier:
    """100 trees of depth 6; versions answer visibly apart."""
    model = xgb.XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1, learning_rate=0.3 / version)
    return model.fit(*breast_cancer())


@functools.cache
def classifier_onnx(version: int = 1) -> Artifact:
    """The XGBoost classifier as ONNX: x FP32 [-1,30] -> label INT64 [-1], probabilities FP32 [-1,2]."""
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    model = xgboost_classifier(version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = convert_xgboost(model, initial_types=[("x", FloatTensorType([None, 30]))], target_opset=15)
    return Artifact("onnx", "classifier.onnx", converted.SerializeToString())


def as_booster(model: xgb.XGBModel, file_format: str) -> Artifact:
    return Artifact("xgboost", f"model.{file_format}", bytes(model.get_booster().save_raw(file_format)))


@functools.cache
def classifier_xgboost(version: int = 1, file_format: str = "json") -> Artifact:
    """input FP32 [-1,30] -> probabilities FP32 [-1,2]; `file_format` json or ubj."""
    return as_booster(xgboost_classifier(version), file_format)


@functools.cache
def xgboost_three_classes() -> xgb.XGBClassifier:
    x, y = breast_cancer()
    return xgb.XGBClassifier(n_estimators=5, n_jobs=1).fit(x, y + (x[:, 0] > 15))


@functools.cache
def xgboost_stopped_early() -> xgb.XGBClassifier:
    """Holds more trees than it predicts with."""
    x, y = breast_cancer()
    noise = np.random.default_rng(7).integers(0, 2, len(y))
    model = xgb.XGBClassifier(n_estimators=30, early_stopping_rounds=5, n_jobs=1)
    return model.fit(x, y, eval_set=[(x, noise)], verbose=False)


@functools.cache
def xgboost_regressor(booster: str = "gbtree") -> xgb.XGBRegressor:
    x, y = breast_cancer()
    return xgb.XGBRegressor(n_estimators=5, booster=booster, n_jobs=1).fit(x, y)


def lightgbm_classifier() -> lgb.Booster:
    return lightgbm_booster("binary", 20)


@functools.cache
def lightgbm_booster(objective: str, trees: int = 5) -> lgb.Booster:
    """Objective `binary`, `multiclass` (of three) or `regression`."""
    x, y = breast_cancer()
    classes = {"num_class": 3} if objective == "multiclass" else {}
    settings = {"objective": objective, "verbose": -1, "num_threads": 1, "seed": 1, **classes}
    labels = y + (x[:, 0] > 15) if classes else y
    return lgb.train(settings, lgb.Dataset(x.astype(np.float64), labels), trees)


@functools.cache
def lightgbm_model(objective: str, trees: int = 5) -> Artifact:
    """`lightgbm_booster` as text."""
    return Artifact("lightgbm", "model.txt", lightgbm_booster(objective, trees).model_to_string().encode())


def classifier_lightgbm() -> Artifact:
    """input FP64 [-1,30] -> probabilities FP64 [-1,2]."""
    return lightgbm_model("binary", 20)


# ------------------------------------------------------------------------------------------------ scikit-learn
@functools.cache
def sklearn_classifier() -> Any:
    x, y = breast_cancer()
    return make_pipeline(StandardScaler(), LogisticRegression(random_state=1)).fit(x.astype(np.float64), y)


def as_skops(model: Any, **push: Any) -> Artifact:
    return Artifact("sklearn", "model.skops", skops.io.dumps(model), **push)


@functools.cache
def classifier_skops() -> Artifact:
    """input FP64 [-1,30] -> label INT64 [-1], probabilities FP64 [-1,2]."""
    return as_skops(sklearn_classifier())


def classifier_pickle(trust: bool = True) -> Artifact:
    options = EngineOptions(trust=True) if trust else None
    return Artifact("sklearn", "model.pkl", pickle.dumps(sklearn_classifier()), options)


@functools.cache
def regressor_skops() -> Artifact:
    x, y = breast_cancer()
    return as_skops(LinearRegression().fit(x.astype(np.float64), y))


@functools.cache
def scaler_skops() -> Artifact:
    return as_skops(StandardScaler().fit(breast_cancer()[0].astype(np.float64)))


@functools.cache
def text_skops() -> Artifact:
    """Text in, text out: input BYTES [-1] -> label BYTES [-1], probabilities FP64 [-1,2]."""
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(["good fine", "bad poor"], ["plus", "minus"])
    signature = Signature(
        (TensorSpec("input", "BYTES", (-1,)),),
        (TensorSpec("label", "BYTES", (-1,)), TensorSpec("probabilities", "FP64", (-1, 2))),
    )
    return as_skops(model, signature=signature, options=EngineOptions(trust=True))


def double(rows: Any) -> Any:
    """A function of ours, which skops does not know."""
    return rows * 2


@functools.cache
def unknown_types_skops() -> Artifact:
    return as_skops(FunctionTransformer(double).fit(np.ones((2, 3))))


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def hostile_pickle(marker: Path, engine: str = "sklearn") -> Artifact:
    """Makes the folder `marker` when it is unpickled."""
    return Artifact(engine, "model.pkl", pickle.dumps(_Bomb(marker)))


# ------------------------------------------------------------------------------------------------ ONNX by hand
def onnx_graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any] = ()) -> bytes:  # type: ignore[assignment]
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@functools.cache
def echo_onnx(add: float = 0.0) -> Artifact:
    """x FP32 [-1,1] -> y = x + add; without `add` the identity."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])
    node, constants = helper.make_node("Identity", ["x"], ["y"]), []
    if add:
        constants = [helper.make_tensor("k", TensorProto.FLOAT, [1], [add])]
        node = helper.make_node("Add", ["x", "k"], ["y"])
    return Artifact("onnx", "echo.onnx", onnx_graph([node], [x], [y], constants))


@functools.cache
def several_onnx() -> Artifact:
    """text BYTES [-1], ids INT64 [-1,2], x FP32 [-1,-1] -> text_out BYTES, ids_out INT64, total FP32 [-1]."""
    value = helper.make_tensor_value_info
    return Artifact(
        "onnx",
        "several.onnx",
        onnx_graph(
            [
                helper.make_node("Identity", ["text"], ["text_out"]),
                helper.make_node("Identity", ["ids"], ["ids_out"]),
                helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0),
            ],
            [
                value("text", TensorProto.STRING, ["rows"]),
                value("ids", TensorProto.INT64, ["rows", 2]),
                value("x", TensorProto.FLOAT, ["rows", "columns"]),
            ],
            [
                value("text_out", TensorProto.STRING, ["rows"]),
                value("ids_out", TensorProto.INT64, ["rows", 2]),
                value("total", TensorProto.FLOAT, ["rows"]),
            ],
            [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
        ),
    )


ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


@functools.cache
def identity_onnx(*datatypes: str) -> Artifact:
    """Per OIP datatype an input of its name, [-1,2], and an output ``<name>_out`` that is the same; all when none is
    named."""
    value, names = helper.make_tensor_value_info, datatypes or tuple(ONNX_TYPES)
    types = ONNX_TYPES | {"BF16": TensorProto.BFLOAT16}
    graph = onnx_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names],
        [value(name, types[name], ["rows", 2]) for name in names],
        [value(f"{name}_out", types[name], ["rows", 2]) for name in names],
    )
    return Artifact("onnx", "identity.onnx", graph)


@functools.cache
def zipmap_onnx(only: bool = False) -> Artifact:
    """A classifier whose probabilities are a sequence of maps; with `only` it has no other output."""
    from skl2onnx import to_onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = to_onnx(sklearn_classifier(), breast_cancer()[0][:1])
    if only:
        del model.graph.output[0]
    return Artifact("onnx", "zipmap.onnx", model.SerializeToString())


# ------------------------------------------------------------------------------------------------ Python
SCORER = """
    import numpy as np

    class Model:
        inputs = [("x", "FP32", (-1, 3))]
        outputs = [("total", "FP32", (-1,)), ("text", "BYTES", (-1,))]

        def predict(self, inputs):
            x = inputs["x"]
            x *= 2  # in place: the array is the model's own
            total = x.sum(axis=1)
            return {"text": np.array([f"{value:g}" for value in total]), "total": total}
"""

_ONE = """
    import os, sys, time

    class Model:
        inputs = [("x", "FP32", (-1, 1))]
        outputs = [("y", "FP32", (-1, 1))]

        def load(self, folder):
            {load}

        def predict(self, inputs):
            x = inputs["x"]
            {predict}
            return x
"""


def python_model(source: str, file_name: str = "model.py") -> Artifact:
    return Artifact("python", file_name, textwrap.dedent(source).lstrip().encode())


def python_echo(load: str = "pass", predict: str = "pass") -> Artifact:
    """x FP32 [-1,1] -> y = x, with a statement of the test's in `load` and in `predict` (which sees `x`)."""
    return python_model(_ONE.format(load=load, predict=predict))


def exits_at_load() -> Artifact:
    """Takes its process down without a word."""
    return python_echo(load="os._exit(9)")


def raises_at_load() -> Artifact:
    return python_echo(load="raise RuntimeError('no weights in /srv/secret/place/weights.bin')")


def exits_at_warm_up() -> Artifact:
    return python_echo(predict="os._exit(9)")


def raises_at_warm_up() -> Artifact:
    return python_echo(predict="raise RuntimeError('cold')")


def fails_on(value: float) -> Artifact:
    """Raises for a batch that holds the value."""
    return python_echo(predict=f"if (x == {value!r}).any(): raise ValueError('unlucky')")


def exits_on(value: float) -> Artifact:
    """Takes its process down for a batch that holds the value."""
    return python_echo(predict=f"if (x == {value!r}).any(): os._exit(9)")


def prints() -> Artifact:
    """Writes to standard output at load and at each prediction, by Python and below it."""
    return python_echo(load="print('loading'); os.write(1, b'raw\\n')", predict="print('predicting', flush=True)")


def slow(seconds: float) -> Artifact:
    """Takes so long for each run."""
    return python_echo(predict=f"time.sleep({seconds!r})")


def tar_of(files: dict[str, bytes], engine: str = "python") -> Artifact:
    """A gzipped tar of files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Artifact(engine, "model.tar.gz", buffer.getvalue())


def python_folder() -> Artifact:
    """A folder with a weight file and a module beside model.py: x FP32 [-1,1] -> y = x * 3 + 1."""
    source = """
        import helper_of_model

        class Model:
            inputs = [("x", "FP32", (-1, 1))]
            outputs = [("y", "FP32", (-1, 1))]

            def load(self, folder):
                self.factor = float((folder / "weights" / "factor.txt").read_text())

            def predict(self, inputs):
                return helper_of_model.plus_one(inputs["x"] * self.factor)
    """
    return tar_of(
        {
            "mine/model.py": textwrap.dedent(source).encode(),
            "mine/helper_of_model.py": b"def plus_one(x):\n    return x + 1\n",
            "mine/weights/factor.txt": b"3",
        }
    )
