"""ONNX models on onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from headrace.core.errors import InvalidInput, Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.server.engines.port import Array

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxEngine:
    """A session with one intra-op thread pool of its own."""

    def __init__(self, session: onnxruntime.InferenceSession, signature: Signature) -> None:
        self.signature = signature
        self._session = session
        # The Python wrapper's `run` checks the feed again on every call; ours was checked against the signature.
        self._run = session._sess.run
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self._texts = [k for k, spec in enumerate(signature.inputs) if spec.datatype == "BYTES"]
        self._text_outputs = [k for k, spec in enumerate(signature.outputs) if spec.datatype == "BYTES"]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        feed = dict(zip(self._inputs, inputs, strict=True))
        for k in self._texts:
            feed[self._inputs[k]] = _decoded(inputs[k], self._inputs[k])
        outputs: list[Array] = self._run(self._outputs, feed, None)
        for k in self._text_outputs:
            encoded = np.empty(outputs[k].shape, object)
            encoded.reshape(-1)[:] = [str(item).encode() for item in outputs[k].reshape(-1)]
            outputs[k] = encoded
        return outputs

    def close(self) -> None:
        """Free the session."""
        del self._run, self._session


def _decoded(array: Array, name: str) -> Array:
    """onnxruntime takes text as `str`."""
    texts = np.empty(array.shape, object)
    try:
        texts.reshape(-1)[:] = [item.decode() for item in array.reshape(-1)]
    except UnicodeDecodeError:
        raise InvalidInput(f"input {name!r}: text must be UTF-8", field="inputs") from None
    return texts


def load(path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> OnnxEngine:
    """Load a model; see `engines.load.load`."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    outputs = session.get_outputs()
    tensors = [node for node in outputs if node.type in _DATATYPES]
    if not tensors:
        raise Unprocessable(
            "the model's outputs are no tensors", field="artifact", hint="export it with options={'zipmap': False}"
        )
    chosen = [_spec(node) for node in tensors]
    if options.outputs:
        by_name = {spec.name: spec for spec in chosen}
        unknown = [name for name in options.outputs if name not in by_name]
        if unknown:
            raise InvalidInput(
                f"options.outputs: no output {unknown[0]!r}, the model has {', '.join(by_name)}",
                field="options.outputs",
            )
        chosen = [by_name[name] for name in options.outputs]
    return OnnxEngine(session, Signature(tuple(_spec(node) for node in session.get_inputs()), tuple(chosen)))


def _spec(node: onnxruntime.NodeArg) -> TensorSpec:
    if node.type not in _DATATYPES:
        raise Unprocessable(f"tensor {node.name!r} is of type {node.type}, which cannot be served", field="artifact")
    shape = tuple(n if isinstance(n, int) and n > 0 else -1 for n in node.shape)
    return TensorSpec(node.name, _DATATYPES[node.type], shape)
