"""BentoML with adaptive batching. ``bentoml serve bentoml_server:Trees``"""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, traffic={"timeout": 30})
class Trees:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.run = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"]).run

    @bentoml.api(route="/predict", batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.run(["probabilities"], {"x": np.asarray(inputs, np.float32)})[0]
