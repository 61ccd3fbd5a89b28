"""ONNX weights of other files, written into the model: the result is what the onnx library itself makes of it."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from headrace.core.errors import Unprocessable
from headrace.registry.importers import onnx as importer
from headrace.registry.importers.candidate import Asked
from headrace.registry.importers.protobuf import fields, head
from tests import sources


def merged(path: Path, one_file_max: int = importer.ONE_FILE_MAX) -> Path:
    with_room = Path(tempfile.mkdtemp(dir=path.parent))
    return importer.read(path, Asked(with_room), one_file_max).path


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6),
    outside=st.lists(st.booleans(), min_size=6, max_size=6),
    files=st.integers(1, 3),
    gap=st.integers(0, 5000),
    whole=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_merging_is_what_onnx_loads(shapes, outside, files, gap, whole):
    """Any tensors, inside or outside, in any of several files, at any offset; the last one's length may be left out."""
    random = np.random.default_rng(len(shapes))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors, contents = [], [bytearray() for _ in range(files)]
        for k, shape in enumerate(shapes):
            tensor = numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), f"t{k}")
            if outside[k]:
                target = contents[k % files]
                target += b"\xff" * gap
                last = whole and k >= len(shapes) - files
                place = {"location": f"w{k % files}", "offset": str(len(target)), "length": str(len(tensor.raw_data))}
                if last:
                    del place["length"]
                target += tensor.raw_data
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=value)
            tensors.append(tensor)
        for k, content in enumerate(contents):
            (folder / f"w{k}").write_bytes(content)
        graph = helper.make_graph([], "g", [], [], tensors)
        (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
        expected = onnx.load(folder / "model.onnx")
        found = onnx.ModelProto.FromString(merged(folder / "model.onnx").read_bytes())
        for tensor in found.graph.initializer:
            assert tensor.data_location == TensorProto.DEFAULT
            assert not tensor.external_data
        for one, other in zip(found.graph.initializer, expected.graph.initializer, strict=True):
            np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


@pytest.mark.parametrize("one_file", [True, False])
def test_weights_of_subgraphs_too(one_file, tmp_path):
    model = sources.network()
    path = sources.save_external(model, tmp_path / "model.onnx", one_file)
    assert len(list(tmp_path.iterdir())) > (1 if one_file else 3)
    assert path.stat().st_size < 2000
    x = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    want = sources.answer(model.SerializeToString(), x=x)[0]
    whole = merged(path)
    np.testing.assert_array_equal(sources.answer(whole.read_bytes(), x=x)[0], want)
    assert importer.ports(whole) == (["x"], ["y"])
    assert merged(whole) == whole  # nothing left to do
    tar = merged(path, one_file_max=1000)
    with tarfile.open(tar) as archive:
        assert set(archive.getnames()) == {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert merged(path, one_file_max=1000).read_bytes() == tar.read_bytes()


def test_no_cut_is_taken_for_whole(tmp_path):
    """A cut between two fields is a message too: what is left of it names the same weights, or none."""
    whole = sources.save_external(sources.network(), tmp_path / "model.onnx").read_bytes()
    ends, at = {0}, 0
    for field in fields(memoryview(whole)):
        at += len(field.raw)
        ends.add(at)
    for size in range(1, len(whole)):
        (tmp_path / "model.onnx").write_bytes(whole[:size])
        if size in ends:
            merged(tmp_path / "model.onnx")
        else:
            with pytest.raises(Unprocessable, match="damaged"):
                merged(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(Unprocessable, match="empty"):
        merged(tmp_path / "model.onnx")


@given(content=st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        try:
            importer.read(path, Asked(Path(folder)))
            importer.ports(path)
        except Unprocessable:
            pass


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"location": "../secret"}, "leads out of"),
        ({"location": "/etc/hostname"}, "leads out of"),
        ({"location": "none"}, "is missing"),
        ({}, "expected a file name"),
        ({"location": "weights", "length": "99"}, "wants bytes 0 to 99 of weights, which has 64"),
        ({"location": "weights", "offset": "-8", "length": "8"}, "wants bytes -8"),
        ({"location": "weights", "offset": "60", "length": "8"}, "wants bytes 60 to 68"),
        ({"location": "weights", "offset": "x"}, "is no number"),
    ],
)
def test_weights_that_are_not_there(place, message, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights").write_bytes(bytes(64))
    tensor = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    (tmp_path / "m" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Unprocessable, match=message) as caught:
        merged(tmp_path / "m" / "model.onnx")
    assert caught.value.field == "source"


def test_nesting_has_an_end(tmp_path):
    content = b""
    for number in (6, 5, 1) * 40:  # a graph in an attribute, in a node, in a graph
        content = head(number, len(content)) + content
    (tmp_path / "model.onnx").write_bytes(head(7, len(content)) + content)
    with pytest.raises(Unprocessable, match="nested deeper"):
        merged(tmp_path / "model.onnx")
