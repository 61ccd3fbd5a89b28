"""The planner on random graphs of steps: order, what is let go when, and that each kind of mistake is told by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.core.errors import InvalidInput
from headrace.core.pipeline import Input, Output, Pipeline, Step, Tensor
from headrace.core.schema import Signature, TensorSpec
from headrace.server.engines.pipeline_plan import plan

KINDS = (("FP32", (-1, 4)), ("BYTES", (-1,)), ("INT64", (-1, -1)))


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[Pipeline, dict[str, Signature]]:
    """A good declaration, its steps in any order, and the signatures of the models in it."""
    inputs = tuple(
        Input(f"in{k}", *draw(st.sampled_from(KINDS))) for k in range(draw(st.integers(min_value=1, max_value=3)))
    )
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {one.name: (one.datatype, one.shape) for one in inputs}
    steps: list[Step] = []
    models: dict[str, Signature] = {}
    for k in range(draw(st.integers(min_value=1, max_value=8))):
        sources = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=4))
        taken = {f"x.{n}": source for n, source in enumerate(sources)}  # tensors of models may have dots
        given_ = [(f"y.{n}", *draw(st.sampled_from(KINDS))) for n in range(draw(st.integers(1, 3)))]
        name = f"step-{k}"
        if draw(st.booleans()):
            takes = [TensorSpec(tensor, *kinds[source]) for tensor, source in taken.items()]
            order = draw(st.permutations(takes))
            models[f"m{k}@1"] = Signature(tuple(order), tuple(TensorSpec(*one) for one in given_))
            steps.append(Step(name, taken, model=f"m{k}@1"))
        else:
            steps.append(Step(name, taken, python="s.py:f", outputs=tuple(Tensor(*one) for one in given_)))
        kinds |= {f"{name}.{tensor}": (datatype, shape) for tensor, datatype, shape in given_}
    read = {source for step in steps for source in step.inputs.values()}
    unread = [name for name in kinds if name not in read]
    chosen = unread + draw(st.lists(st.sampled_from(sorted(kinds)), min_size=0 if unread else 1, max_size=2))
    outputs = tuple(Output(f"out{n}", source) for n, source in enumerate(chosen))
    return Pipeline(inputs, outputs, tuple(draw(st.permutations(steps)))), models


def evaluate(pipeline: Pipeline, models: Mapping[str, Signature], source: str) -> Any:
    """What a tensor is, written down as how it came about."""
    if source in [one.name for one in pipeline.inputs]:
        return source
    name, _, tensor = source.partition(".")
    step = next(step for step in pipeline.steps if step.name == name)
    names = [spec.name for spec in models[step.model].inputs] if step.model else list(step.inputs)
    return (name, tensor, tuple(evaluate(pipeline, models, step.inputs[one]) for one in names))


@given(pipelines())
def test_the_plan_computes_what_the_declaration_says(made: tuple[Pipeline, dict[str, Signature]]) -> None:
    pipeline, models = made
    planned = plan(pipeline, models)
    tensors: list[Any] = [one.name for one in pipeline.inputs] + [None] * (planned.tensors - len(pipeline.inputs))
    for step in planned.steps:
        taken = tuple(tensors[k] for k in step.inputs)
        assert None not in taken, "read before it was made, or after it was let go"
        for k, spec in zip(step.outputs, step.signature.outputs, strict=True):
            assert tensors[k] is None
            tensors[k] = (step.step.name, spec.name, taken)
        for k in step.done:
            tensors[k] = None
    for one, k in zip(pipeline.outputs, planned.outputs, strict=True):
        assert tensors[k] == evaluate(pipeline, models, one.source)
    assert {k for k, tensor in enumerate(tensors) if tensor is not None} == set(planned.outputs), "kept for nobody"
    assert [spec.name for spec in planned.signature.outputs] == [one.name for one in pipeline.outputs]
    assert planned.signature.batchable


@given(pipelines())
def test_only_a_tensor_with_one_reader_may_be_worked_upon(made: tuple[Pipeline, dict[str, Signature]]) -> None:
    pipeline, models = made
    planned = plan(pipeline, models)
    reads = [k for step in planned.steps for k in step.inputs] + list(planned.outputs)
    for step in planned.steps:
        for k, shared in zip(step.inputs, step.shared, strict=True):
            assert shared == (k < len(pipeline.inputs) or reads.count(k) > 1)


def rewired(pipeline: Pipeline, step: int, tensor: str, source: str) -> Pipeline:
    steps = list(pipeline.steps)
    steps[step] = msgspec.structs.replace(steps[step], inputs={**steps[step].inputs, tensor: source})
    return msgspec.structs.replace(pipeline, steps=tuple(steps))


@given(pipelines(), st.data())
def test_a_cycle_is_told_by_its_steps(made: tuple[Pipeline, dict[str, Signature]], data: st.DataObject) -> None:
    pipeline, models = made
    number = {step.name: k for k, step in enumerate(pipeline.steps)}
    links = [(step.name, s.partition(".")[0]) for step in pipeline.steps for s in step.inputs.values() if "." in s]
    after, before = data.draw(st.sampled_from(links or [(pipeline.steps[0].name,) * 2]))
    first = pipeline.steps[number[before]]
    tensor = data.draw(st.sampled_from(sorted(first.inputs)))
    with pytest.raises(InvalidInput, match="a cycle: ") as caught:
        plan(rewired(pipeline, number[before], tensor, f"{after}.y.0"), models)
    told = caught.value.message.partition("a cycle: ")[2].split(" reads from ")
    assert told[0] == told[-1]
    assert {name.strip("'") for name in told} <= set(number)


@given(pipelines(), st.data())
def test_an_unknown_source_is_told(made: tuple[Pipeline, dict[str, Signature]], data: st.DataObject) -> None:
    pipeline, models = made
    at = data.draw(st.integers(0, len(pipeline.steps) - 1))
    step = pipeline.steps[at]
    tensor = data.draw(st.sampled_from(sorted(step.inputs)))
    others = [one.name for one in pipeline.steps if one.name != step.name]
    nowhere = data.draw(st.sampled_from(["nothing", "no.step", *(f"{name}.z" for name in others)]))
    with pytest.raises(InvalidInput) as caught:
        plan(rewired(pipeline, at, tensor, nowhere), models)
    if "a cycle" not in caught.value.message:  # a step that comes later, whatever tensor of it is meant
        assert f"step {step.name!r}, input {tensor!r}: {nowhere!r} is unknown" in caught.value.message
        assert caught.value.field == f"steps.{step.name}.inputs.{tensor}"


@given(pipelines(), st.data())
def test_a_tensor_that_does_not_fit_is_told(made: tuple[Pipeline, dict[str, Signature]], data: st.DataObject) -> None:
    pipeline, models = made
    assume(models)
    name = data.draw(st.sampled_from(sorted(models)))
    step = next(step for step in pipeline.steps if step.model == name)
    k = data.draw(st.integers(0, len(models[name].inputs) - 1))
    right = models[name].inputs[k]
    wrong = data.draw(
        st.sampled_from(
            [
                TensorSpec(right.name, "UINT8", right.shape),
                TensorSpec(right.name, right.datatype, (*right.shape, 1)),
                TensorSpec(right.name, right.datatype, (-1, 5) if right.shape == (-1, 4) else (8, *right.shape[1:])),
            ]
        )
    )
    inputs = (*models[name].inputs[:k], wrong, *models[name].inputs[k + 1 :])
    with pytest.raises(InvalidInput) as caught:
        plan(pipeline, {**models, name: Signature(inputs, models[name].outputs)})
    assert caught.value.message.startswith(f"step {step.name!r}, input {right.name!r}: ")
    assert caught.value.field == f"steps.{step.name}.inputs.{right.name}"


@given(pipelines(), st.data())
def test_what_nobody_reads_is_told(made: tuple[Pipeline, dict[str, Signature]], data: st.DataObject) -> None:
    pipeline, models = made
    read = {source for step in pipeline.steps for source in step.inputs.values()}
    only = [one for one in pipeline.outputs if one.source not in read and len(pipeline.outputs) > 1]
    only = [one for one in only if [other.source for other in pipeline.outputs].count(one.source) == 1]
    assume(only)
    dropped = data.draw(st.sampled_from(only))
    left = tuple(one for one in pipeline.outputs if one is not dropped)
    with pytest.raises(InvalidInput, match="read") as caught:
        plan(msgspec.structs.replace(pipeline, outputs=left), models)
    name, dot, tensor = dropped.source.partition(".")
    assert caught.value.message.startswith(f"step {name!r}, output {tensor!r}" if dot else f"input {name!r}")


def test_steps_that_do_not_wait_keep_the_files_order() -> None:
    steps = tuple(Step(name, {"x": "in"}, python="s.py:f", outputs=(Tensor("y", "FP32", (-1,)),)) for name in "cab")
    pipeline = Pipeline(
        (Input("in", "FP32", (-1,)),), tuple(Output(step.name, f"{step.name}.y") for step in steps), steps
    )
    assert [step.step.name for step in plan(pipeline, {}).steps] == ["c", "a", "b"]
