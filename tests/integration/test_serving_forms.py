"""Serving forms of ONNX models: the artifact's outputs bit by bit, and never taken unless known to be whole."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.core.errors import Unprocessable
from headrace.core.forms import RECORD, folder_of
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions, FormSpec, ReplicaSpec, ServedVersion
from headrace.core.verified import digest_of
from headrace.deploy.node import Node
from headrace.server import form as making
from headrace.server.engines.load import load
from headrace.server.engines.onnx import OnnxEngine
from headrace.server.engines.onnx_form import GRAPH, WEIGHTS, find, recorded
from tests.integration.test_zygotes import run as on_node
from tests.integration.test_zygotes import start, until

WIDTH = 512


def layers(folder: Path, count: int = 2, name: str = "m.onnx") -> tuple[Path, str]:
    """A model of so many matrices of 1 MB; its digest."""
    nodes, weights, last = [], [], "x"
    for k in range(count):
        matrix = np.random.default_rng(k).standard_normal((WIDTH, WIDTH)).astype(np.float32) / 20
        weights.append(numpy_helper.from_array(matrix, f"w{k}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{k}"], [f"h{k}"]))
        last = f"r{k}"
        nodes.append(helper.make_node("Relu", [f"h{k}"], [last]))
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", WIDTH]) for end in ("x", last)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path = folder / name
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, digest_of(path)


def make(folder: Path, path: Path, digest: str, max_bytes: int = 1 << 40) -> Path:
    forms = folder / "forms"
    making.make(FormSpec(str(path), digest, str(forms), max_bytes))
    return forms


def test_its_outputs_are_the_artifacts(tmp_path: Path) -> None:
    path, digest = layers(tmp_path)
    forms = make(tmp_path, path, digest)
    form = find(forms, digest)
    assert form is not None
    assert form.packed_ms > 0
    assert form.unpacked_ms > 0
    assert (form.folder / WEIGHTS).stat().st_size >= 2 * WIDTH * WIDTH * 4
    assert (form.folder / GRAPH).stat().st_size < 10_000, "the weights have left the graph"
    original = load("onnx", path, None, None).engine
    engine = load("onnx", path, None, None, form=msgspec.structs.replace(form, quick=False)).engine
    generator = np.random.default_rng(7)
    for rows in (1, 2, 5, 33):
        x = generator.standard_normal((rows, WIDTH)).astype(np.float32)
        if form.prepack:
            assert engine.run([x])[0].tobytes() == original.run([x])[0].tobytes()
        np.testing.assert_allclose(engine.run([x])[0], original.run([x])[0], rtol=1e-3, atol=1e-4)
    engine.close()
    original.close()


def test_one_that_begins_without_prepacking_ends_with_it(tmp_path: Path) -> None:
    path, digest = layers(tmp_path)
    form = find(make(tmp_path, path, digest), digest)
    assert form is not None
    engine = OnnxEngine(path, EngineOptions(), None, 1, msgspec.structs.replace(form, quick=True, prepack=True))
    original = OnnxEngine(path, EngineOptions(), None, 1)
    x = np.random.default_rng(3).standard_normal((1, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(engine.run([x])[0], original.run([x])[0], rtol=1e-3, atol=1e-4)
    assert engine._packing is not None
    engine._packing.join(30)
    assert engine.run([x])[0].tobytes() == original.run([x])[0].tobytes()
    engine.close()
    original.close()


def test_other_bits_leave_a_record_and_no_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = layers(tmp_path)
    other, _ = layers(tmp_path, 3, "other.onnx")
    convert = making.convert
    monkeypatch.setattr(making, "convert", lambda artifact, folder: convert(other, folder))
    forms = make(tmp_path, path, digest)
    found = recorded(forms, digest)
    assert found is not None
    assert found.refused
    assert find(forms, digest) is None
    assert not (folder_of(forms, digest) / WEIGHTS).exists()


def test_a_model_without_weights_has_no_use_for_one(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", 1]) for end in ("x", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    forms = make(tmp_path, path, digest_of(path))
    found = recorded(forms, digest_of(path))
    assert found is not None
    assert found.refused == "it has no weights to map"


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_damaged_one_is_not_taken_and_made_again(tmp_path: Path, name: str, how: str) -> None:
    path, digest = layers(tmp_path)
    forms = make(tmp_path, path, digest)
    file = folder_of(forms, digest) / name
    if how == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert find(forms, digest) is None
    assert not (folder_of(forms, digest) / RECORD).exists(), "so that it is made anew"
    make(tmp_path, path, digest)
    assert find(forms, digest) is not None


def test_what_a_killed_one_left_is_swept_and_the_oldest_make_room(tmp_path: Path) -> None:
    left = tmp_path / "forms" / f"{making.MAKING}1"
    left.mkdir(parents=True)
    (left / WEIGHTS).write_bytes(b"half")
    first = layers(tmp_path, 2, "a.onnx")
    second = layers(tmp_path, 3, "b.onnx")
    forms = make(tmp_path, *first)
    assert not left.exists()
    os.utime(folder_of(forms, first[1]) / RECORD, (1.0, 1.0))
    make(tmp_path, *second, max_bytes=4 << 20)
    assert find(forms, first[1]) is None
    assert find(forms, second[1]) is not None
    with pytest.raises(Unprocessable, match="more than all forms may take"):
        make(tmp_path, *layers(tmp_path, 6, "c.onnx"), max_bytes=4 << 20)


def test_a_node_makes_one_after_the_first_load_and_the_next_replica_maps_it(tmp_path: Path) -> None:
    path, digest = layers(tmp_path, 9)
    signature = Signature((TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("r8", "FP32", (-1, WIDTH)),))
    served = ServedVersion(0, "default/m", 1, "onnx", str(path), digest, signature, EngineOptions())

    async def test(node: Node) -> None:
        def wanted(name: str) -> ReplicaSpec:
            return ReplicaSpec(name, f"unix:{tmp_path}/{name}", (served,), drain_s=5.0)

        await start(node, wanted("a"))
        record = folder_of(Path(node.forms.folder), digest) / RECORD
        await until(record.exists, "a form")
        second = await start(node, wanted("b"))
        assert str(record.parent / WEIGHTS) in Path(f"/proc/{second.pid}/maps").read_text()
        await asyncio.sleep(0)

    on_node(tmp_path, test)


def test_with_none_allowed_none_is_made(tmp_path: Path) -> None:
    async def test(node: Node) -> None:
        assert node.forms.folder == ""

    on_node(tmp_path, test, forms_max_bytes=0)
