"""`tritonclient.http`, unchanged, against a real platform: every datatype, JSON and binary, compressed, errors, the
extensions. What Triton's own client takes for granted is what its users' programs take for granted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from headrace.client import calls
from headrace.client.client import Client
from headrace.core.errors import Unprocessable
from headrace.core.resources import Quota
from tests import models
from tests.polling import until

VALUES: dict[str, Any] = {
    "BOOL": np.array([[True, False], [False, True]]),
    **{
        name: np.array([[np.iinfo(name.lower()).min, np.iinfo(name.lower()).max], [0, 7]], name.lower())
        for name in ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
    },
    "FP16": np.array([[-2.5, 65504], [0, 1.5]], np.float16),
    "FP32": np.array([[-2.5, 3.4e38], [0, 1e-30]], np.float32),
    "FP64": np.array([[-2.5, 1e300], [0, 0.1]], np.float64),
    "BYTES": np.array([["plain", "with \n and \\ and \x00"], ["", "weiß 川"]], object),
}


@pytest.fixture(scope="module")
def every(client: Client) -> str:
    """A deployed model with an input and an output of every datatype."""
    version = client.push("every", models.identity_onnx().content).result
    client.deploy(f"every@{version.version}", traffic=100)
    return "every"


@pytest.fixture(scope="module")
def strings(client: Client) -> str:
    """A deployed model that answers with the texts it is asked."""
    version = client.push("strings", models.identity_onnx("BYTES").content).result
    client.deploy(f"strings@{version.version}", traffic=100)
    return "strings"


@pytest.fixture
def headers(client: Client) -> dict[str, str]:
    """The admin's key; new for each test, for tritonclient adds its own to the dictionary that it is given."""
    return {"Authorization": f"Bearer {client.access.api_key}"}


@pytest.fixture
def http(client: Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(client.access.url.removeprefix("http://"), concurrency=4) as found:
        yield found


def tensor(name: str, array: Any, binary: bool = True, datatype: str | None = None) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def x(*values: float, binary: bool = True) -> list[triton.InferInput]:
    return [tensor("x", np.array([[v] for v in values], np.float32), binary)]


def same(name: str, got: Any) -> None:
    if name == "BYTES":
        assert [item if isinstance(item, str) else item.decode() for item in got.flat] == list(VALUES[name].flat)
        return
    assert got.dtype == VALUES[name].dtype
    np.testing.assert_array_equal(got, VALUES[name])


@pytest.mark.parametrize("compressed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("way", ["binary", "json", "mixed"])
def test_every_datatype_comes_back_as_it_went(
    http: triton.InferenceServerClient, every: str, headers: dict[str, str], way: str, compressed: str | None
) -> None:
    def binary(k: int) -> bool:
        return way == "binary" or (way == "mixed" and k % 2 == 0)

    # tritonclient itself refuses FP16 as JSON.
    names = list(VALUES)
    inputs = [tensor(name, VALUES[name], binary(k) or name == "FP16") for k, name in enumerate(names)]
    outputs = [triton.InferRequestedOutput(f"{name}_out", binary_data=binary(k + 1)) for k, name in enumerate(names)]
    result = http.infer(
        every,
        inputs,
        outputs=outputs,
        request_id="77",
        headers=headers,
        request_compression_algorithm=compressed,
        response_compression_algorithm=compressed,
    )
    reply = result.get_response()
    assert (reply["model_name"], reply["model_version"], reply["id"]) == (every, "1", "77")
    assert [output["name"] for output in reply["outputs"]] == [f"{name}_out" for name in names]
    for k, name in enumerate(names):
        described = result.get_output(f"{name}_out")
        assert described["datatype"] == name and described["shape"] == [2, 2]
        assert ("data" in described) is not binary(k + 1)
        same(name, result.as_numpy(f"{name}_out"))


def test_the_answer_is_compressed_when_it_was_asked_for(
    http: triton.InferenceServerClient, echo: str, headers: dict[str, str]
) -> None:
    rows = [float(k) for k in range(5000)]
    for algorithm in ("gzip", "deflate"):
        result = http.infer(echo, x(*rows), headers=headers, response_compression_algorithm=algorithm)
        assert result.as_numpy("y")[:, 0].tolist() == rows
    raw = http._post(
        f"v2/models/{echo}/infer",
        triton.InferenceServerClient.generate_request_body(x(*rows))[0],
        {**headers, "Accept-Encoding": "gzip", "Inference-Header-Content-Length": _json_length(x(*rows))},
        None,
    )
    assert raw.get("content-encoding") == "gzip"


def _json_length(inputs: list[triton.InferInput]) -> int:
    found: int = triton.InferenceServerClient.generate_request_body(inputs)[1]
    return found


def test_only_the_outputs_that_were_asked_for_in_that_order(
    http: triton.InferenceServerClient, every: str, headers: dict[str, str]
) -> None:
    asked = ["INT8_out", "BOOL_out"]
    outputs = [triton.InferRequestedOutput(name) for name in asked]
    result = http.infer(every, [tensor(n, VALUES[n]) for n in VALUES], outputs=outputs, headers=headers)
    assert [output["name"] for output in result.get_response()["outputs"]] == asked
    assert result.as_numpy("FP32_out") is None


@pytest.mark.parametrize("binary", [True, False])
def test_texts_of_any_length(
    http: triton.InferenceServerClient, strings: str, headers: dict[str, str], binary: bool
) -> None:
    texts = np.array([["", "a"], ["b" * 100_000, "\u20ac"]], object)
    result = http.infer(strings, [tensor("BYTES", texts, binary)], headers=headers)
    assert [item.decode() for item in result.as_numpy("BYTES_out").flat] == list(texts.flat)


def test_bf16_is_refused_clearly_at_the_push_and_at_the_request(
    client: Client, http: triton.InferenceServerClient, echo: str, headers: dict[str, str]
) -> None:
    with pytest.raises(Unprocessable, match="bfloat16"):
        client.push("bf16", models.identity_onnx("BF16").content)
    array = np.array([[1.5]], ml_dtypes.bfloat16)
    with pytest.raises(InferenceServerException, match="datatype 'BF16', expected FP32") as caught:
        http.infer(echo, [tensor("x", array, datatype="BF16")], headers=headers)
    assert caught.value.status() == "400"


def test_a_version_may_be_named(http: triton.InferenceServerClient, echo: str, headers: dict[str, str]) -> None:
    result = http.infer(echo, x(2.0), model_version="1", headers=headers)
    assert result.as_numpy("y").tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("model", "version", "inputs", "outputs", "status", "says"),
    [
        ("nothing", "", x(1.0), None, "404", "model 'nothing' does not exist"),
        ("echo", "99", x(1.0), None, "404", "no deployed version '99'"),
        ("echo", "one", x(1.0), None, "404", "no deployed version 'one'"),
        ("echo", "", [tensor("z", np.ones((1, 1), np.float32))], None, "400", "unknown input 'z'"),
        ("echo", "", [tensor("x", np.ones((1, 2), np.float32))], None, "400", r"shape \[1, 2\], expected \[-1, 1\]"),
        ("echo", "", [tensor("x", np.ones(1, np.float32))], None, "400", r"shape \[1\], expected \[-1, 1\]"),
        ("echo", "", [tensor("x", np.ones((1, 1)))], None, "400", "datatype 'FP64', expected FP32"),
        ("echo", "", x(float("nan")), None, "400", "must be finite FP32"),
        ("echo", "", x(float("inf"), 1.0), None, "400", "must be finite FP32"),
        ("echo", "", x(1.0) + x(1.0), None, "400", "given twice"),
        ("echo", "", x(1.0), [triton.InferRequestedOutput("q")], "400", "unknown output 'q'"),
        ("echo", "", x(1.0), [triton.InferRequestedOutput("y", class_count=2)], "400", "classification"),
    ],
)
def test_errors_say_what_and_why(
    http: triton.InferenceServerClient,
    echo: str,
    headers: dict[str, str],
    model: str,
    version: str,
    inputs: Any,
    outputs: Any,
    status: str,
    says: str,
) -> None:
    with pytest.raises(InferenceServerException, match=says) as caught:
        http.infer(model, inputs, model_version=version, outputs=outputs, headers=headers)
    assert caught.value.status() == status
    assert http.infer(echo, x(3.0), headers=headers).as_numpy("y").tolist() == [[3.0]]


def test_nan_passes_where_the_version_allows_it(
    client: Client, http: triton.InferenceServerClient, headers: dict[str, str]
) -> None:
    version = client.push("loose", models.echo_onnx().content, nan="allow").result
    client.deploy(f"loose@{version.version}", traffic=100)
    values = [float("nan"), float("-inf"), 1.0]
    got = http.infer("loose", x(*values), headers=headers).as_numpy("y")
    np.testing.assert_array_equal(got[:, 0], np.array(values, np.float32))


def test_keys_and_tenants(
    client: Client, http: triton.InferenceServerClient, echo: str, headers: dict[str, str]
) -> None:
    client.call(calls.create_tenant("stranger", Quota(1e6, 1e6, 1000)))
    foreign = client.call(calls.create_key("operator", "stranger")).result.text
    for key, status, says in (
        (None, "401", "no API key"),
        ("hr_nobody_x", "401", "no API key"),
        (foreign, "403", "another tenant"),
    ):
        sent = {} if key is None else {"Authorization": f"Bearer {key}"}
        for ask in (
            lambda sent=sent: http.infer(echo, x(1.0), headers=sent),
            lambda sent=sent: http.get_model_metadata(echo, headers=sent),
            lambda sent=sent: http.get_model_config(echo, headers=sent),
            lambda sent=sent: http.get_inference_statistics(echo, headers=sent),
        ):
            with pytest.raises(InferenceServerException, match=says) as caught:
                ask()
            assert caught.value.status() == status
    stranger = {"Authorization": f"Bearer {foreign}"}
    assert http.get_model_repository_index(headers=stranger) == []
    assert http.get_inference_statistics(headers=stranger) == {"model_stats": []}


def test_server_and_model_metadata(http: triton.InferenceServerClient, every: str, headers: dict[str, str]) -> None:
    assert http.is_server_live() and http.is_server_ready()
    server = http.get_server_metadata()
    assert server["name"] == "headrace" and "binary_tensor_data" in server["extensions"]
    for version in ("", "1"):
        found = http.get_model_metadata(every, version, headers=headers)
        assert (found["name"], found["versions"], found["platform"]) == (every, ["1"], "onnxruntime_onnx")
        assert found["inputs"] == [{"name": n, "datatype": n, "shape": [-1, 2]} for n in VALUES]
        assert found["outputs"] == [{"name": f"{n}_out", "datatype": n, "shape": [-1, 2]} for n in VALUES]
        config = http.get_model_config(every, version, headers=headers)
        assert config["name"] == every and config["max_batch_size"] == 0
        kinds = {entry["name"]: entry["data_type"] for entry in config["input"]}
        assert kinds == {n: f"TYPE_{'STRING' if n == 'BYTES' else n}" for n in VALUES}
        assert http.is_model_ready(every, version, headers=headers)
    assert not http.is_model_ready(every, "9", headers=headers)
    assert not http.is_model_ready("nothing", headers=headers)
    with pytest.raises(InferenceServerException, match="does not exist"):
        http.get_model_metadata("nothing", headers=headers)


def test_statistics_count_requests_rows_and_failures(
    http: triton.InferenceServerClient, strings: str, headers: dict[str, str]
) -> None:
    def read() -> tuple[int, int, int]:
        row = http.get_inference_statistics(strings, "1", headers=headers)["model_stats"][0]
        told = row["inference_stats"]
        assert (row["name"], row["version"]) == (strings, "1")
        assert (
            sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in row["batch_stats"])
            == (row["inference_count"])
        )
        return told["success"]["count"], row["inference_count"], told["fail"]["count"]

    before = read()
    http.infer(strings, [tensor("BYTES", VALUES["BYTES"])], headers=headers)
    with pytest.raises(InferenceServerException):
        http.infer(strings, x(1.0), headers=headers)
    assert read() == (before[0] + 1, before[1] + 2, before[2] + 1)


def test_the_repository_lists_unloads_and_loads(
    client: Client, http: triton.InferenceServerClient, headers: dict[str, str]
) -> None:
    client.push("come-and-go", models.echo_onnx(4.0).content)

    def state() -> str:
        rows = http.get_model_repository_index(headers=headers)
        found = [row["state"] for row in rows if row["name"] == "come-and-go"]
        return found[0] if found else "NOT THERE"

    assert state() == "NOT THERE"
    for _ in range(2):
        http.load_model("come-and-go", headers=headers)
        until(lambda: http.is_model_ready("come-and-go", headers=headers))
        assert state() == "READY"
        until(lambda: _answers(http, headers))
        http.unload_model("come-and-go", headers=headers)
        until(lambda: not http.is_model_ready("come-and-go", headers=headers))
        with pytest.raises(InferenceServerException) as caught:
            http.infer("come-and-go", x(1.0), headers=headers)
        assert caught.value.status() in ("404", "503")
    with pytest.raises(InferenceServerException, match="nothing"):
        http.load_model("nothing", headers=headers)
    viewer = client.call(calls.create_key("viewer")).result.text
    with pytest.raises(InferenceServerException) as caught:
        http.load_model("come-and-go", headers={"Authorization": f"Bearer {viewer}"})
    assert caught.value.status() == "403"


def _answers(http: triton.InferenceServerClient, headers: dict[str, str]) -> bool:
    try:
        return bool(http.infer("come-and-go", x(1.0), headers=headers).as_numpy("y")[0, 0] == 5.0)
    except InferenceServerException as error:
        assert error.status() == "503", error
        return False


def test_requests_in_parallel_each_get_their_own(
    http: triton.InferenceServerClient, echo: str, headers: dict[str, str]
) -> None:
    asked = [http.async_infer(echo, x(float(k)), request_id=str(k), headers=headers) for k in range(64)]
    for k, one in enumerate(asked):
        result = one.get_result()
        assert result.get_response()["id"] == str(k) and result.as_numpy("y").tolist() == [[float(k)]]
    wrong = http.async_infer(echo, [tensor("q", np.ones((1, 1), np.float32))], headers=headers)
    with pytest.raises(InferenceServerException, match="unknown input 'q'"):
        wrong.get_result()


def test_bodies_made_and_parsed_offline(client: Client, echo: str, headers: dict[str, str]) -> None:
    """What programs do that bring an HTTP client of their own."""
    import httpx

    body, length = triton.InferenceServerClient.generate_request_body(x(1.0, 2.0))
    sent = {**headers, "Inference-Header-Content-Length": str(length)}
    reply = httpx.post(f"{client.access.url}/v2/models/{echo}/infer", content=body, headers=sent)
    cut = int(reply.headers["inference-header-content-length"])
    result = triton.InferenceServerClient.parse_response_body(reply.content, header_length=cut)
    assert result.as_numpy("y").tolist() == [[1.0], [2.0]]


def test_the_asynchronous_client(client: Client, every: str, echo: str, headers: dict[str, str]) -> None:
    async def talk() -> None:
        async with triton_aio.InferenceServerClient(client.access.url.removeprefix("http://")) as http:
            assert await http.is_server_live() and await http.is_server_ready()
            assert await http.is_model_ready(every, headers=headers)
            assert (await http.get_model_metadata(every, headers=headers))["name"] == every
            assert (await http.get_model_config(every, headers=headers))["backend"] == "onnx"
            assert await http.get_model_repository_index(headers=headers)
            assert (await http.get_inference_statistics(headers=headers))["model_stats"]
            for algorithm in (None, "gzip", "deflate"):
                result = await http.infer(
                    every,
                    [tensor(name, VALUES[name]) for name in VALUES],
                    headers={**headers},
                    request_compression_algorithm=algorithm,
                    response_compression_algorithm=algorithm,
                )
                for name in VALUES:
                    same(name, result.as_numpy(f"{name}_out"))
            several = [http.infer(echo, x(float(k), binary=k % 2 == 0), headers={**headers}) for k in range(32)]
            for k, result in enumerate(await asyncio.gather(*several)):
                assert result.as_numpy("y").tolist() == [[float(k)]]
            with pytest.raises(InferenceServerException, match="does not exist"):
                await http.infer("nothing", x(1.0), headers=headers)

    asyncio.run(talk())
