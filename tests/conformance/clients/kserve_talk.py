"""KServe's v2 REST client, by KServe's Python package: runs in an environment of its own, tells what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(array: Any, datatype: str = "FP32", name: str = "x", binary: bool = True) -> InferRequest:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name="echo", infer_inputs=[made], request_id="7")


async def refused(asked: Any) -> list[Any]:
    """Status and text of an answer that must be an error."""
    try:
        return ["accepted", repr(await asked)]
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, str(error)]


async def talk(url: str, key: str) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=20))
    headers, seen = {"Authorization": f"Bearer {key}"}, dict[str, Any]()
    rows = np.array([[1.5], [-2.5]], np.float32)
    seen["live"] = await client.is_server_live(url)
    seen["ready"] = await client.is_server_ready(url)
    seen["model ready"] = await client.is_model_ready(url, "echo", headers=headers)
    for binary in (True, False):
        reply = await client.infer(url, request(rows, binary=binary), model_name="echo", headers={**headers})
        output = reply.outputs[0]
        seen[f"binary {binary}"] = [reply.model_name, reply.id, output.name, output.as_numpy().tolist()]
    plain = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [4.0]}]}
    reply = await client.infer(url, plain, model_name="echo", headers={**headers})
    seen["plain"] = reply.outputs[0].as_numpy().tolist()
    wrong = request(np.array([[1.0]]), "FP64")
    seen["wrong datatype"] = await refused(client.infer(url, wrong, model_name="echo", headers={**headers}))
    seen["no such model"] = await refused(client.infer(url, plain, model_name="nothing", headers={**headers}))
    seen["no key"] = await refused(client.infer(url, plain, model_name="echo"))
    await client.close()
    return seen


print(json.dumps(asyncio.run(talk(*sys.argv[1:]))))
