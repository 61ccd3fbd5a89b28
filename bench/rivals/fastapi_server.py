"""FastAPI + uvicorn, onnxruntime inline: what a team writes first. ``uvicorn fastapi_server:app``"""

import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
run = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"]).run
app = FastAPI()


class Rows(BaseModel):
    inputs: list[list[float]]


@app.post("/predict")
async def predict(rows: Rows) -> dict[str, list[list[float]]]:
    return {"outputs": run(["probabilities"], {"x": np.array(rows.inputs, np.float32)})[0].tolist()}
