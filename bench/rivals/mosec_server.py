"""Mosec with dynamic batching. Its options come from the command line: ``python mosec_server.py --port 8901``"""

import os

import msgspec
import numpy as np
import onnxruntime as ort
from mosec import Server, Worker


class Rows(msgspec.Struct):
    inputs: list[list[float]]


decode = msgspec.json.Decoder(Rows).decode
encode = msgspec.json.Encoder().encode


class Trees(Worker):
    def __init__(self) -> None:
        super().__init__()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.run = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"]).run

    def deserialize(self, data: bytes) -> list[list[float]]:
        return decode(data).inputs

    def serialize(self, data: list[list[float]]) -> bytes:
        return encode({"outputs": data})

    def forward(self, data: list[list[list[float]]]) -> list[list[list[float]]]:
        batch = np.array([row for rows in data for row in rows], np.float32)
        answers = self.run(["probabilities"], {"x": batch})[0].tolist()
        out, at = [], 0
        for rows in data:
            out.append(answers[at : at + len(rows)])
            at += len(rows)
        return out


if __name__ == "__main__":
    server = Server()
    server.append_worker(Trees, num=1, max_batch_size=64, max_wait_time=1, route="/predict")
    server.run()
