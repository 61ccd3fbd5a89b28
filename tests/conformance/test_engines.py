"""Every engine behind the port: what it says of itself is true, and what it cannot load it refuses by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from sklearn.ensemble import RandomForestClassifier
from sklearn.multioutput import MultiOutputClassifier

from headrace.core.errors import CallerError, InvalidInput, PlatformFault, Unprocessable
from headrace.core.schema import DATATYPES, Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.core.verified import verify
from headrace.server.engines.load import load
from headrace.server.engines.port import example
from headrace.server.engines.ubjson import check_whole
from tests import models
from tests.models import Artifact, spec

# name -> (artifact, inputs, outputs)
ARTIFACTS: dict[str, tuple[Callable[[], Artifact], list[str], list[str]]] = {
    "onnx-classifier": (models.classifier_onnx, ["x FP32 -1,30"], ["label INT64 -1", "probabilities FP32 -1,2"]),
    "onnx-echo": (models.echo_onnx, ["x FP32 -1,1"], ["y FP32 -1,1"]),
    "onnx-several": (
        models.several_onnx,
        ["text BYTES -1", "ids INT64 -1,2", "x FP32 -1,-1"],
        ["text_out BYTES -1", "ids_out INT64 -1,2", "total FP32 -1"],
    ),
    "onnx-zipmap": (models.zipmap_onnx, ["X FP32 -1,30"], ["output_label INT64 -1"]),
    "xgboost-json": (models.classifier_xgboost, ["input FP32 -1,30"], ["probabilities FP32 -1,2"]),
    "xgboost-ubj": (
        lambda: models.classifier_xgboost(1, "ubj"),
        ["input FP32 -1,30"],
        ["probabilities FP32 -1,2"],
    ),
    "xgboost-three": (
        lambda: models.as_booster(models.xgboost_three_classes(), "ubj"),
        ["input FP32 -1,30"],
        ["probabilities FP32 -1,3"],
    ),
    "xgboost-regressor": (
        lambda: models.as_booster(models.xgboost_regressor(), "json"),
        ["input FP32 -1,30"],
        ["prediction FP32 -1"],
    ),
    "xgboost-linear": (
        lambda: models.as_booster(models.xgboost_regressor("gblinear"), "json"),
        ["input FP32 -1,30"],
        ["prediction FP32 -1"],
    ),
    "xgboost-dart": (
        lambda: models.as_booster(models.xgboost_regressor("dart"), "ubj"),
        ["input FP32 -1,30"],
        ["prediction FP32 -1"],
    ),
    "lightgbm": (models.classifier_lightgbm, ["input FP64 -1,30"], ["probabilities FP64 -1,2"]),
    "lightgbm-three": (
        lambda: models.lightgbm_model("multiclass"),
        ["input FP64 -1,30"],
        ["probabilities FP64 -1,3"],
    ),
    "lightgbm-regressor": (
        lambda: models.lightgbm_model("regression"),
        ["input FP64 -1,30"],
        ["prediction FP64 -1"],
    ),
    "skops": (models.classifier_skops, ["input FP64 -1,30"], ["label INT64 -1", "probabilities FP64 -1,2"]),
    "skops-regressor": (models.regressor_skops, ["input FP64 -1,30"], ["prediction FP64 -1"]),
    "skops-scaler": (models.scaler_skops, ["input FP64 -1,30"], ["transformed FP64 -1,30"]),
    "skops-text": (models.text_skops, ["input BYTES -1"], ["label BYTES -1", "probabilities FP64 -1,2"]),
    "pickle": (models.classifier_pickle, ["input FP64 -1,30"], ["label INT64 -1", "probabilities FP64 -1,2"]),
    "python": (lambda: models.python_model(models.SCORER), ["x FP32 -1,3"], ["total FP32 -1", "text BYTES -1"]),
    "python-folder": (models.python_folder, ["x FP32 -1,1"], ["y FP32 -1,1"]),
}


def sample(signature: Signature, rows: int, seed: int = 3) -> list[np.ndarray[Any, Any]]:
    """Random inputs as the server hands them over: read-only, over the bytes of a request."""
    random = np.random.default_rng(seed)
    arrays: list[np.ndarray[Any, Any]] = []
    for tensor in signature.inputs:
        shape = [rows if k == 0 else 4 if n == -1 else n for k, n in enumerate(tensor.shape)]
        if tensor.datatype == "BYTES":
            words = np.array([b"good", b"bad", "fine \u00e9".encode(), b""], object)
            arrays.append(words[random.integers(0, 4, shape)])
        else:
            values = (random.random(shape) * 20).astype(DATATYPES[tensor.datatype])
            arrays.append(np.frombuffer(values.tobytes(), values.dtype).reshape(shape))
    return arrays


@pytest.mark.parametrize("name", ARTIFACTS)
def test_signature_is_true(name, open_engine):
    make, inputs, outputs = ARTIFACTS[name]
    engine = open_engine(make())
    assert engine.signature.inputs == tuple(map(spec, inputs))
    assert engine.signature.outputs == tuple(map(spec, outputs))
    assert engine.signature.batchable
    for given in (example(engine.signature), sample(engine.signature, 5)):
        results = engine.run(given)
        assert len(results) == len(outputs)
        for tensor, result in zip(engine.signature.outputs, results, strict=True):
            assert result.dtype == DATATYPES[tensor.datatype]
            assert result.flags.c_contiguous
            assert len(result) == len(given[0])
            assert result.shape[1:] == tensor.shape[1:]
            if tensor.datatype == "BYTES":
                assert all(type(item) is bytes for item in result.reshape(-1))


@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_batch_is_its_rows(name, open_engine):
    engine = open_engine(ARTIFACTS[name][0]())
    batch = sample(engine.signature, 7)
    whole = engine.run(batch)
    for row in range(7):
        alone = engine.run([array[row : row + 1] for array in batch])
        for tensor, one, all_ in zip(engine.signature.outputs, alone, whole, strict=True):
            if tensor.datatype.startswith("FP"):
                np.testing.assert_allclose(one, all_[row : row + 1], rtol=1e-6)
            else:
                assert (one == all_[row : row + 1]).all()


@pytest.mark.parametrize("name", ARTIFACTS)
def test_rows_may_begin_at_any_address(name, open_engine):
    """A binary request's tensors are views of its bytes, wherever those begin."""
    engine = open_engine(ARTIFACTS[name][0]())
    batch = sample(engine.signature, 3)
    shifted = []
    for array in batch:
        if array.dtype.kind == "O":
            shifted.append(array)
            continue
        content = b"?" + array.tobytes()
        shifted.append(np.frombuffer(content, array.dtype, offset=1).reshape(array.shape))
        assert not shifted[-1].flags.aligned
    for one, other in zip(engine.run(shifted), engine.run(batch), strict=True):
        if one.dtype.kind == "f":  # sums are rounded in another order
            np.testing.assert_allclose(one, other, rtol=1e-6)
        else:
            assert (one == other).all()


@pytest.mark.parametrize("name", [name for name, (_, _, outputs) in ARTIFACTS.items() if len(outputs) > 1])
def test_selected_outputs_in_their_order(name, open_engine):
    make, _, outputs = ARTIFACTS[name]
    artifact = make()
    wanted = tuple(reversed([spec(text).name for text in outputs]))
    trust = bool(artifact.options and artifact.options.trust)
    whole = open_engine(artifact)
    batch = sample(whole.signature, 3)
    everything = whole.run(batch)[::-1]
    for names, expected in ((wanted, everything), (wanted[:1], everything[:1])):
        engine = open_engine(artifact, options=EngineOptions(outputs=names, trust=trust))
        assert tuple(tensor.name for tensor in engine.signature.outputs) == names
        results = engine.run(batch)
        assert len(results) == len(expected)
        for result, wants in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, wants)
        again = open_engine(artifact, options=EngineOptions(outputs=names, trust=trust), signature=engine.signature)
        assert again.signature == engine.signature


@pytest.mark.parametrize("name", ARTIFACTS)
def test_unknown_output_is_refused(name, open_engine):
    artifact = ARTIFACTS[name][0]()
    trust = bool(artifact.options and artifact.options.trust)
    with pytest.raises(InvalidInput, match="nothing_like_it") as caught:
        open_engine(artifact, options=EngineOptions(outputs=("nothing_like_it",), trust=trust))
    assert caught.value.field == "options.outputs"


@pytest.mark.parametrize("name", ARTIFACTS)
@pytest.mark.parametrize("part", ["name", "datatype", "shape"])
def test_a_signature_that_the_model_contradicts_is_refused(name, part, open_engine):
    artifact = ARTIFACTS[name][0]()
    own = open_engine(artifact).signature
    first = own.outputs[0]
    wrong = {
        "name": TensorSpec("other", first.datatype, first.shape),
        "datatype": TensorSpec(first.name, "UINT8", first.shape),
        "shape": TensorSpec(first.name, first.datatype, (*first.shape, 9)),
    }[part]
    assert open_engine(artifact, signature=own).signature == own
    with pytest.raises(InvalidInput) as caught:
        open_engine(artifact, signature=Signature(own.inputs, (wrong, *own.outputs[1:])))
    assert caught.value.field == ("signature.outputs" if part == "name" else f"signature.outputs[0].{part}")


# ------------------------------------------------------------------------------------------------ parity
def test_answers_are_the_librarys_own(open_engine):
    x, _ = models.breast_cancer()
    wide = x.astype(np.float64)
    probabilities = models.xgboost_classifier().predict_proba(x)
    for artifact in (models.classifier_xgboost(), models.classifier_xgboost(1, "ubj")):
        np.testing.assert_allclose(open_engine(artifact).run([x])[0], probabilities, rtol=1e-6)
    np.testing.assert_allclose(open_engine(models.classifier_onnx()).run([x])[1], probabilities, atol=1e-5)
    three = models.xgboost_three_classes()
    np.testing.assert_allclose(open_engine(models.as_booster(three, "json")).run([x])[0], three.predict_proba(x))
    for kind in ("gbtree", "gblinear", "dart"):
        model = models.xgboost_regressor(kind)
        np.testing.assert_allclose(
            open_engine(models.as_booster(model, "json")).run([x])[0], model.predict(x), rtol=1e-6
        )
    positive = models.lightgbm_classifier().predict(wide)
    np.testing.assert_allclose(open_engine(models.classifier_lightgbm()).run([wide])[0][:, 1], positive)
    for objective in ("multiclass", "regression"):
        expected = models.lightgbm_booster(objective).predict(wide)
        np.testing.assert_allclose(open_engine(models.lightgbm_model(objective)).run([wide])[0], expected)
    label, table = open_engine(models.classifier_skops()).run([wide])
    assert (label == models.sklearn_classifier().predict(wide)).all()
    np.testing.assert_allclose(table, models.sklearn_classifier().predict_proba(wide))


def test_early_stopping_uses_the_best_round(open_engine):
    x, _ = models.breast_cancer()
    model = models.xgboost_stopped_early()
    every_tree = model.predict_proba(x, iteration_range=(0, model.get_booster().num_boosted_rounds()))
    served = open_engine(models.as_booster(model, "ubj")).run([x])[0]
    np.testing.assert_allclose(served, model.predict_proba(x), rtol=1e-6)
    assert not np.allclose(served, every_tree)


def test_versions_answer_apart(open_engine):
    x, _ = models.breast_cancer()
    first, second = (open_engine(models.classifier_onnx(version)).run([x[:8]])[1] for version in (1, 2))
    assert (np.abs(first - second).max(axis=1) > 1e-4).all()


def test_missing_values_take_the_trees_own_way(open_engine, tmp_path):
    rows = models.breast_cancer()[0][:4].copy()
    rows[:, ::3] = np.nan
    np.testing.assert_allclose(
        open_engine(models.classifier_xgboost()).run([rows])[0],
        models.xgboost_classifier().predict_proba(rows),
        rtol=1e-6,
    )
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(
        open_engine(models.classifier_lightgbm()).run([wide])[0][:, 1], models.lightgbm_classifier().predict(wide)
    )


@pytest.mark.parametrize(
    ("make", "nan"),
    [
        (models.echo_onnx, "reject"),
        (models.classifier_skops, "reject"),
        (models.python_echo, "reject"),
        (models.classifier_xgboost, "allow"),
        (models.classifier_lightgbm, "allow"),
    ],
)
def test_nan_policy_by_default(make, nan, tmp_path):
    artifact = make()
    path = artifact.save(tmp_path)
    loaded = load(artifact.engine, path, None, None, 1)
    assert loaded.options == EngineOptions(nan=nan)
    loaded.engine.close()
    explicit = load(artifact.engine, path, EngineOptions(nan="reject", batch_max=7), None, 1)
    assert explicit.options == EngineOptions(nan="reject", batch_max=7)
    explicit.engine.close()


# ------------------------------------------------------------------------------------------------ refusals
TRUNCATABLE = [name for name in ARTIFACTS if name not in ("python", "onnx-echo")]


@pytest.mark.parametrize("name", TRUNCATABLE)
def test_truncated_artifacts_are_refused(name, open_engine, tmp_path):
    artifact = ARTIFACTS[name][0]()
    broken = artifact.truncated(0.6)
    with pytest.raises(Unprocessable) as caught:
        open_engine(broken)
    assert caught.value.field == "digest"
    assert str(tmp_path) not in caught.value.message
    assert len(caught.value.message) < 500
    path = broken.save(tmp_path)
    with pytest.raises(Unprocessable, match="damaged"):
        verify(path, artifact.digest)
    verify(path, broken.digest)


def test_no_cut_of_an_xgboost_model_reaches_its_reader():
    """It crashes the process on some of them."""
    whole = models.as_booster(models.xgboost_regressor(), "ubj").content
    check_whole(whole)
    for end in (*range(1, 200), *range(200, len(whole), 37), *range(len(whole) - 50, len(whole))):
        with pytest.raises(Unprocessable, match="damaged: cut short"):
            check_whole(whole[:end])
    with pytest.raises(Unprocessable, match="2 bytes follow its end"):
        check_whole(whole + b"{}")
    with pytest.raises(Unprocessable, match="nested deeper"):
        check_whole(b"[" * 100_000)


@pytest.mark.parametrize("share", [0.1, 0.9, 0.99, 0.995])
def test_no_cut_of_a_lightgbm_model_reaches_its_reader(share, open_engine):
    with pytest.raises(Unprocessable, match="cut short"):
        open_engine(models.classifier_lightgbm().truncated(share))


@pytest.mark.parametrize("engine", ["onnx", "xgboost", "lightgbm", "sklearn", "python"])
@pytest.mark.parametrize(
    "content", [b"", b"\0\1\2\3" * 50, b"{", b"{}", b"tree\n", b"PK\3\4", b"\x80\4", b"\x1f\x8b", b"x ="]
)
def test_what_is_no_model_is_refused(engine, content, open_engine):
    with pytest.raises(CallerError) as caught:
        open_engine(Artifact(engine, "model", content, EngineOptions(trust=True)))
    assert caught.value.field in ("digest", "signature")


def test_missing_file_and_unknown_engine(tmp_path):
    with pytest.raises(Unprocessable, match="cannot be read"):
        load("onnx", tmp_path / "none", None, None)
    with pytest.raises(Unprocessable, match="cannot be read"):
        verify(tmp_path / "none", "00")
    with pytest.raises(InvalidInput, match="'tensorflow', expected one of onnx") as caught:
        load("tensorflow", tmp_path / "none", None, None)
    assert caught.value.field == "engine"


@pytest.mark.parametrize("engine", ["sklearn", "python"])
def test_an_untrusted_pickle_is_refused_and_does_not_run(engine, open_engine, tmp_path):
    marker = tmp_path / "ran"
    artifact = models.hostile_pickle(marker, engine)
    for options in (None, EngineOptions()):
        with pytest.raises(Unprocessable, match="is a pickle") as caught:
            open_engine(artifact, options=options)
        assert caught.value.field == "options.trust"
        assert "--trust" in (caught.value.hint or "")
        assert not marker.exists()
    with pytest.raises(Unprocessable):
        open_engine(artifact, options=EngineOptions(trust=True))
    assert marker.exists()  # so the check above looks at the right thing


@pytest.mark.parametrize("compress", [0, 3, ("bz2", 3), ("xz", 3)])
def test_joblib_needs_trust(compress, open_engine, tmp_path):
    import joblib

    joblib.dump(models.sklearn_classifier(), tmp_path / "m", compress=compress)
    artifact = Artifact("sklearn", "m.joblib", (tmp_path / "m").read_bytes())
    with pytest.raises(Unprocessable, match="is a pickle"):
        open_engine(artifact)
    engine = open_engine(artifact, options=EngineOptions(trust=True))
    assert engine.signature.inputs == (spec("input FP64 -1,30"),)


def test_skops_lists_what_it_does_not_know(open_engine):
    with pytest.raises(Unprocessable, match=r"tests\.models\.double") as caught:
        open_engine(models.unknown_types_skops())
    assert caught.value.field == "options.trust"
    engine = open_engine(models.unknown_types_skops(), options=EngineOptions(trust=True))
    assert engine.run([np.ones((2, 3))])[0].tolist() == [[2.0] * 3] * 2


def test_onnx_without_a_tensor(open_engine):
    with pytest.raises(Unprocessable, match="no output is a tensor") as caught:
        open_engine(models.zipmap_onnx(only=True))
    assert "zipmap" in (caught.value.hint or "")
    with pytest.raises(InvalidInput, match="no tensor") as refused:
        open_engine(models.zipmap_onnx(), options=EngineOptions(outputs=("output_probability",)))
    assert refused.value.field == "options.outputs"


def onnx_with_weights_in(location: str) -> Artifact:
    """x UINT8 [-1,16] -> y = x ^ the first 16 bytes of another file."""
    weights = TensorProto(name="k", data_type=TensorProto.UINT8, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.UINT8, [None, 16]) for name in "xy")
    graph = helper.make_graph([helper.make_node("BitwiseXor", ["x", "k"], ["y"])], "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Artifact("onnx", "external.onnx", model.SerializeToString())


@pytest.mark.parametrize("location", ["neighbour", "./neighbour", "../{folder}/neighbour", "{path}"])
def test_onnx_reads_no_other_file(location, open_engine, tmp_path):
    """The artifacts of all tenants lie in one folder."""
    neighbour = tmp_path / "neighbour"
    neighbour.write_bytes(b"weights of others")
    with pytest.raises(Unprocessable, match="keeps weights in another file") as caught:
        open_engine(onnx_with_weights_in(location.format(folder=tmp_path.name, path=neighbour)))
    assert "headrace models import" in (caught.value.hint or "")


@pytest.mark.parametrize("make", [models.classifier_xgboost, models.classifier_lightgbm])
def test_what_a_library_would_read_past_is_refused(make, open_engine):
    engine = open_engine(make())
    (rows,) = sample(engine.signature, 4)
    other = np.float64 if rows.dtype == np.float32 else np.float32
    for wrong in (rows.astype(other), rows[:, :29].copy(), np.asfortranarray(rows), rows[::2], rows[0]):
        with pytest.raises(PlatformFault, match="handed"):
            engine.run([wrong])


def test_text_must_be_utf8(open_engine):
    engine = open_engine(models.several_onnx())
    text, ids, x = sample(engine.signature, 2)
    text[1] = b"\xff"
    with pytest.raises(InvalidInput, match="'text': item 1 is not UTF-8"):
        engine.run([text, ids, x])


def test_sklearn_of_several_targets(open_engine):
    x, y = models.breast_cancer()
    model = MultiOutputClassifier(RandomForestClassifier(2)).fit(x, np.stack([y, 1 - y], axis=1))
    with pytest.raises(Unprocessable, match="one per target"):
        open_engine(models.as_skops(model), options=EngineOptions(trust=True))
