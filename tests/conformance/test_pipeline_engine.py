"""The pipeline engine: what the whole computes, what each step is told and counted, and what it refuses by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core.errors import CallerError, HeadraceError, InvalidInput, PlatformFault, Unprocessable
from headrace.core.pipeline import FILE
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, ServedPart
from headrace.server.engines.load import load
from headrace.server.engines.port import Composed, Engine, warm_inputs
from tests import models, pipelines
from tests.models import Artifact, spec
from tests.pipelines import declaration, step


@pytest.fixture
def open_pipeline(tmp_path: Path):
    """Loads pipelines; closes them afterwards."""
    engines: list[Engine] = []

    def open_(artifact: Artifact, *parts: ServedPart, **change: Any) -> Any:
        path = artifact.save(tmp_path)
        options, signature = change.get("options"), change.get("signature")
        engines.append(load("pipeline", path, options, signature, 1, parts).engine)
        return engines[-1]

    yield open_
    for engine in engines:
        engine.close()


def texts(*rows: bytes) -> list[np.ndarray[Any, Any]]:
    return [np.array(rows, object)]


def simple(function: str, outputs: str = "y FP32 -1,1", **more: Any) -> Artifact:
    """One Python step: x FP32 [-1, 1] -> whatever `function` returns of the array `x`."""
    source = f"import numpy as np\nimport headrace\ndef f(inputs):\n    x = inputs['x']\n    {function}\n"
    one = step("only", 'python = "steps.py:f"', {"x": "x"}, outputs, **more)
    return pipelines.pipeline({FILE: declaration([one], "only.y"), "steps.py": source})


def test_branches_and_their_join(tmp_path, open_pipeline):
    engine = open_pipeline(pipelines.pipeline(), pipelines.more(tmp_path))
    assert isinstance(engine, Composed)
    assert engine.signature == Signature((spec("text BYTES -1"),), (spec("total FP32 -1,1"), spec("upper BYTES -1")))
    given = texts(b"one", b"one two!", b"a b c!!")
    total, upper = engine.run(given)
    assert total.tolist() == [[106.0], [108.0], [110.0]]
    assert upper.tolist() == [b"ONE", b"ONE TWO!", b"A B C!!"]
    assert given[0].tolist() == [b"one", b"one two!", b"a b c!!"], "a step worked upon the caller's rows"


def test_a_batch_is_its_rows(tmp_path, open_pipeline):
    engine = open_pipeline(pipelines.pipeline(), pipelines.more(tmp_path))
    rows = [b"x " * k + b"!" * (k % 3) for k in range(9)]
    whole = engine.run(texts(*rows))
    for k, row in enumerate(rows):
        for one, every in zip(engine.run(texts(row)), whole, strict=True):
            assert one.tolist() == every[k : k + 1].tolist()


def test_the_example_is_the_declarations(tmp_path, open_pipeline):
    engine = open_pipeline(pipelines.pipeline(), pipelines.more(tmp_path))
    assert [array.tolist() for array in warm_inputs(engine)] == [[b"a b", b"a b"]]
    changed = pipelines.WORDS.replace('example = "a b"', 'example_file = "base.txt"')
    engine = open_pipeline(pipelines.pipeline(pipeline_toml=changed), pipelines.more(tmp_path))
    assert warm_inputs(engine)[0].tolist() == [b"100", b"100"]


def test_the_folder_may_be_in_the_tar_and_outputs_chosen(tmp_path, open_pipeline):
    options = EngineOptions(outputs=("upper",))
    engine = open_pipeline(pipelines.pipeline(folder="words/"), pipelines.more(tmp_path), options=options)
    assert [output.tolist() for output in engine.run(texts(b"a"))] == [[b"A"]]


def test_models_alone_need_no_tar(tmp_path, open_pipeline):
    steps = [step("a", 'model = "more@1"', {"x": "x"}), step("b", 'model = "more@1"', {"x": "a.y"})]
    engine = open_pipeline(Artifact("pipeline", FILE, declaration(steps, "b.y").encode()), pipelines.more(tmp_path))
    assert engine.run([np.ones((2, 1), np.float32)])[0].tolist() == [[11.0], [11.0]]


def test_every_engine_may_be_a_step(tmp_path, open_pipeline):
    """One row through each in-process engine, beside what it says alone."""
    rows = models.breast_cancer()[0][:5]
    made = {
        "onnx": (models.classifier_onnx(), "x", "probabilities"),
        "xgboost": (models.classifier_xgboost(), "input", "probabilities"),
        "lightgbm": (models.classifier_lightgbm(), "input", "probabilities"),
        "sklearn": (models.classifier_skops(), "input", "probabilities"),
    }
    steps, parts, outputs = [], [], []
    given = [
        '{ name = "narrow", datatype = "FP32", shape = [-1, 30] }',
        '{ name = "wide", datatype = "FP64", shape = [-1, 30] }',
    ]
    for name, (artifact, tensor, output) in made.items():
        parts.append(pipelines.part(f"{name}@1", artifact, tmp_path))
        source = "narrow" if parts[-1].signature.inputs[0].datatype == "FP32" else "wide"
        steps.append(
            step(name, f'model = "{name}@1"', {tensor: source}).replace("inputs", f'outputs = ["{output}"]\ninputs')
        )
        outputs.append(f'{{ name = "{name}", from = "{name}.{output}" }}')
    text = f"inputs = [{', '.join(given)}]\noutputs = [{', '.join(outputs)}]\n" + "\n\n".join(steps)
    engine = open_pipeline(Artifact("pipeline", FILE, text.encode()), *parts)
    found = engine.run([rows, rows.astype(np.float64)])
    for (name, (artifact, _, output)), result in zip(made.items(), found, strict=True):
        alone = load(artifact.engine, artifact.save(tmp_path), EngineOptions(outputs=(output,)), None).engine
        wanted = rows.astype(np.float64) if alone.signature.inputs[0].datatype == "FP64" else rows
        np.testing.assert_array_equal(result, alone.run([wanted])[0], err_msg=name)
        alone.close()


def test_chunks_and_meters(tmp_path, open_pipeline):
    chunked = pipelines.WORDS.replace('inputs = { x = "count.n" }', 'inputs = { x = "count.n" }\nbatch_max = 2')
    engine = open_pipeline(pipelines.pipeline(pipeline_toml=chunked), pipelines.more(tmp_path))
    assert engine.run(texts(*[b"a b"] * 5))[0].tolist() == [[107.0]] * 5
    counted = {one.step: (one.rows, one.durations.count, one.failures) for one in engine.take_steps()}
    assert counted == {"count": (5, 1, 0), "shout": (5, 1, 0), "more": (5, 3, 0), "join": (5, 1, 0)}
    assert all(one.durations.sum_s == 0 or one.rows for one in engine.take_steps())
    with pytest.raises(PlatformFault):
        engine.run(texts(b"crash"))
    counted = {one.step: (one.rows, one.failures) for one in engine.take_steps()}
    assert counted == {"count": (0, 1), "shout": (0, 0), "more": (0, 0), "join": (0, 0)}


def test_a_models_own_batch_max_holds(tmp_path, open_pipeline):
    part = pipelines.part("more@1", models.echo_onnx(5.0), tmp_path, EngineOptions(batch_max=4))
    text = declaration([step("a", 'model = "more@1"', {"x": "x"})], "a.y")
    engine = open_pipeline(Artifact("pipeline", FILE, text.encode()), part)
    engine.run([np.ones((9, 1), np.float32)])
    assert engine.take_steps()[0].durations.count == 3


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        ("return x[:1]", PlatformFault, r"step 'only': gave 1 rows of 'y' for 3: a step gives one row for each"),
        ("return np.concatenate([x, x])", PlatformFault, "gave 6 rows of 'y' for 3"),
        ("return x[:, 0]", PlatformFault, r"step 'only': the model gave float32 \[3\] for 'y'"),
        ("return {'z': x}", PlatformFault, "step 'only': predict gave no output 'y'"),
        ("raise KeyError('nothing')", PlatformFault, "step 'only' failed: KeyError: 'nothing'"),
        ("raise SystemExit('bye')", PlatformFault, "step 'only' failed: SystemExit: bye"),
        ("raise headrace.errors.InvalidInput('not so')", InvalidInput, "step 'only': not so"),
    ],
)
def test_what_a_step_does_wrong_is_told_with_its_name(function, kind, message, open_pipeline):
    engine = open_pipeline(simple(function))
    with pytest.raises(HeadraceError, match=message) as caught:
        engine.run([np.ones((3, 1), np.float32)])
    assert type(caught.value) is kind


def test_chunks_of_different_shapes_are_told(open_pipeline):
    function = "return np.zeros((len(x), len(x)), np.float32)"
    engine = open_pipeline(simple(function, "y FP32 -1,-1", batch_max=2))
    with pytest.raises(PlatformFault, match=r"step 'only': gave 'y' of different shapes .*: \[1\], \[2\]"):
        engine.run([np.ones((3, 1), np.float32)])


def test_free_dimensions_and_nan_are_looked_at_between_the_steps(tmp_path, open_pipeline):
    source = (
        "import numpy as np\ndef f(inputs):\n    x = inputs['x']\n"
        "    return np.full((len(x), int(x[0, 0])), np.nan if x[0, 0] == 1 else 2, np.float32)\n"
    )
    steps = [
        step("widen", 'python = "steps.py:f"', {"x": "x"}, "y FP32 -1,-1"),
        step("more", 'model = "more@1"', {"x": "widen.y"}),
    ]
    artifact = pipelines.pipeline({FILE: declaration(steps, "more.y"), "steps.py": source})
    engine = open_pipeline(artifact, pipelines.more(tmp_path))
    with pytest.raises(InvalidInput, match=r"step 'more': input 'x' is FP32 \[1, 3\], expected \[-1, 1\]"):
        engine.run([np.full((1, 1), 3, np.float32)])
    with pytest.raises(InvalidInput, match="step 'more': input 'x': values must be finite FP32"):
        engine.run([np.ones((1, 1), np.float32)])


def test_an_array_that_a_step_gives_twice_is_two(open_pipeline):
    source = (
        "def split(inputs):\n    return {'a': inputs['x'], 'b': inputs['x']}\n"
        "def spoil(inputs):\n    inputs['x'] *= 0\n    return inputs['x']\n"
        "def add(inputs):\n    return inputs['a'] + inputs['b']\n"
    )
    steps = [
        step("split", 'python = "s.py:split"', {"x": "x"}, "a FP32 -1,1; b FP32 -1,1"),
        step("spoil", 'python = "s.py:spoil"', {"x": "split.a"}, "y FP32 -1,1"),
        step("add", 'python = "s.py:add"', {"a": "spoil.y", "b": "split.b"}, "y FP32 -1,1"),
    ]
    engine = open_pipeline(pipelines.pipeline({FILE: declaration(steps, "add.y"), "s.py": source}))
    assert engine.run([np.full((2, 1), 7, np.float32)])[0].tolist() == [[7.0], [7.0]]


BAD = {
    "not TOML": ("inputs = [", "pipeline.toml: not TOML"),
    "unknown field": (pipelines.WORDS.replace("python", "pyhton", 1), "steps\\[0\\]: .*unknown field `pyhton`"),
    "no version": (pipelines.WORDS.replace("more@1", "more"), "step 'more': model = 'more', expected a version"),
    "both": (pipelines.WORDS.replace('model = "', 'python = "a.py:f"\nmodel = "'), "expected either model or python"),
    "dtype": (
        pipelines.WORDS.replace('"n", datatype = "FP32"', '"n", datatype = "FP64"'),
        r"step 'more', input 'x': more@1 takes FP32 \[-1, 1\], 'count.n' is FP64 \[-1, 1\]",
    ),
    "model's tensor": (
        pipelines.WORDS.replace('{ x = "count.n" }', '{ z = "count.n" }'),
        "step 'more', input 'z': unknown; more@1 takes 'x'",
    ),
    "missing": (
        pipelines.WORDS.replace('{ left = "more.y"', '{ left = "more.z"'),
        "step 'join', input 'left': 'more.z' is unknown",
    ),
    "unused": (
        pipelines.WORDS.replace(', right = "shout.bangs"', ""),
        "step 'shout', output 'bangs': nobody reads it",
    ),
    "no file": (pipelines.WORDS.replace("steps.py:count", "step.py:count"), "step 'count': the artifact holds no step"),
    "no function": (pipelines.WORDS.replace("steps.py:count", "steps.py:count_"), "has no function 'count_'"),
    "outside": (pipelines.WORDS.replace("steps.py:count", "../steps.py:count"), "a path inside the pipeline's folder"),
    "rows": (
        pipelines.WORDS.replace('"n", datatype = "FP32", shape = [-1, 1]', '"n", datatype = "FP32", shape = [1]'),
        r"step 'count', output 'n': shape \[1\] does not begin with -1",
    ),
    "twice": (pipelines.WORDS.replace('name = "shout"', 'name = "count"'), "steps: the name 'count' stands twice"),
    "example": (pipelines.WORDS.replace('example = "a b"', "example = 5"), "input 'text': example is no BYTES"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_declaration_is_told(name, tmp_path, open_pipeline):
    text, message = BAD[name]
    with pytest.raises(CallerError, match=message) as caught:
        open_pipeline(pipelines.pipeline(pipeline_toml=text), pipelines.more(tmp_path))
    assert caught.value.field


@pytest.mark.parametrize(
    ("artifact", "message"),
    [
        (Artifact("pipeline", "x.tar", pipelines.tar({"steps.py": ""})), "the tar holds no pipeline.toml"),
        (Artifact("pipeline", "x.tar", b"\xff\xfe\x00"), "neither pipeline.toml nor an uncompressed tar"),
        (
            pipelines.pipeline(steps_py="import nothing_of_this_name"),
            "step 'count': steps.py:count does not load: Modul",
        ),
    ],
)
def test_what_is_no_pipeline_is_refused(artifact, message, tmp_path, open_pipeline):
    with pytest.raises(Unprocessable, match=message):
        open_pipeline(artifact, pipelines.more(tmp_path))


def test_modules_of_one_name_are_refused(tmp_path, open_pipeline):
    """In one process the second to import `base` would get the first's."""
    source = models.python_echo().content.decode()
    inner = pipelines.part(
        "more@1", Artifact("python", "m.tar", pipelines.tar({"model.py": source, "steps.py": ""})), tmp_path
    )
    before = list(sys.path), set(sys.modules)
    with pytest.raises(Unprocessable, match=r"pipeline\.toml and more@1 both bring a Python module 'steps'"):
        open_pipeline(pipelines.pipeline(), inner)
    assert sys.path == before[0]
    assert {name for name in set(sys.modules) - before[1] if name.startswith("headrace_model_")} == set()


def test_nothing_is_left_behind(tmp_path, open_pipeline):
    paths = list(sys.path)
    engine = load("pipeline", pipelines.pipeline().save(tmp_path), None, None, 1, [pipelines.more(tmp_path)]).engine
    assert sys.path != paths
    folder = Path(sys.path[0])
    engine.close()
    assert sys.path == paths
    assert not folder.exists()
