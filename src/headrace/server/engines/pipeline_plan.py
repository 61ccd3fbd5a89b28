"""From a pipeline's declaration and its models' signatures to the order in which the steps run. Pure.

Every tensor that is ever made gets a number; a planned step says which numbers it reads, which it writes, and which
nobody reads after it. What is wrong is told with the step and the tensor: unknown names, cycles, datatypes and shapes
that do not fit, outputs that nobody reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from headrace.core.errors import InvalidInput
from headrace.core.names import did_you_mean
from headrace.core.pipeline import Pipeline, Step
from headrace.core.schema import DATATYPES, Signature, TensorSpec


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step in its place."""

    step: Step
    signature: Signature
    """Its tensors in the order in which it takes and gives them."""
    inputs: tuple[int, ...]
    """Numbers of the tensors that it reads."""
    shared: tuple[bool, ...]
    """Of each input: it is the caller's, or others read it too, so that it may not be worked upon in place."""
    outputs: tuple[int, ...]
    done: tuple[int, ...]
    """Numbers that nobody reads after it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline ready to be loaded. Its inputs have the first numbers, in their order."""

    signature: Signature
    steps: tuple[PlannedStep, ...]
    outputs: tuple[int, ...]
    tensors: int
    """How many numbers there are."""


def plan(pipeline: Pipeline, models: Mapping[str, Signature]) -> Plan:
    """Check a pipeline and put its steps in order; steps that do not wait for each other keep the file's.

    Args:
        pipeline: its declaration.
        models: reference as it is written in the declaration -> signature of that version.

    Raises:
        InvalidInput: names the step and the tensor at fault.
    """
    inputs = {one.name: TensorSpec(one.name, one.datatype, one.shape) for one in pipeline.inputs}
    for spec in inputs.values():
        _check_tensor(spec, f"input {spec.name!r}", f"inputs.{spec.name}")
    ordered = _order(pipeline, inputs)
    specs: dict[str, TensorSpec] = dict(inputs)
    signatures: dict[str, Signature] = {}
    for step in ordered:
        signatures[step.name] = found = _signature(step, specs, models)
        specs |= {f"{step.name}.{spec.name}": spec for spec in found.outputs}
    results = []
    for one in pipeline.outputs:
        if one.source not in specs:
            _unknown(one.source, specs, f"output {one.name!r}", f"outputs.{one.name}")
        results.append(TensorSpec(one.name, specs[one.source].datatype, specs[one.source].shape))
    _check_used(pipeline, ordered, signatures, specs)
    return _number(pipeline, ordered, signatures, Signature(tuple(inputs.values()), tuple(results)), list(specs))


def _order(pipeline: Pipeline, inputs: Mapping[str, TensorSpec]) -> list[Step]:
    """Each step after those that it reads from."""
    steps = {step.name: step for step in pipeline.steps}
    needs: dict[str, dict[str, str]] = {}  # step -> step that it reads from -> by which of its inputs
    for step in pipeline.steps:
        needs[step.name] = {}
        for name, source in step.inputs.items():
            if source not in inputs:
                before = source.partition(".")[0]
                if before not in steps:
                    known = [*inputs, *steps]
                    _unknown(source, known, f"step {step.name!r}, input {name!r}", _field(step, name))
                needs[step.name].setdefault(before, name)
    ordered: list[Step] = []
    placed: set[str] = set()
    while len(ordered) < len(steps):
        waiting = [step for name, step in steps.items() if name not in placed]
        ready = next((step for step in waiting if placed.issuperset(needs[step.name])), None)
        if ready is None:
            _tell_cycle(steps, {name: list(needs[name].items()) for name in steps if name not in placed}, placed)
        placed.add(ready.name)
        ordered.append(ready)
    return ordered


def _tell_cycle(steps: Mapping[str, Step], needs: Mapping[str, list[tuple[str, str]]], placed: set[str]) -> NoReturn:
    """Every step that is left waits for another that is left: following them leads into a circle."""
    path = [next(iter(needs))]
    while len(set(path)) == len(path):
        path.append(next(before for before, _ in needs[path[-1]] if before not in placed))
    path = path[path.index(path[-1]) :]
    name = dict(needs[path[0]])[path[1]]
    raise InvalidInput(
        f"step {path[0]!r}, input {name!r}: a cycle: {' reads from '.join(map(repr, path))}",
        field=_field(steps[path[0]], name),
    )


def _signature(step: Step, specs: Mapping[str, TensorSpec], models: Mapping[str, Signature]) -> Signature:
    """What the step takes and gives, checked against what its sources give."""
    given: dict[str, TensorSpec] = {}
    for name, source in step.inputs.items():
        if source not in specs:
            _unknown(source, specs, f"step {step.name!r}, input {name!r}", _field(step, name))
        given[name] = TensorSpec(name, specs[source].datatype, specs[source].shape)
    if step.model is None:
        outputs = tuple(TensorSpec(o.name, o.datatype, o.shape) for o in step.outputs if not isinstance(o, str))
        for output in outputs:
            where = f"step {step.name!r}, output {output.name!r}"
            _check_tensor(output, where, _field(step, output.name, "outputs"))
        return Signature(tuple(given.values()), outputs)
    if step.model not in models:
        raise InvalidInput(f"step {step.name!r}: no version {step.model!r} was given", field=f"steps.{step.name}.model")
    model = models[step.model]
    for name in given:
        if name not in [spec.name for spec in model.inputs]:
            known = [spec.name for spec in model.inputs]
            _unknown(name, known, f"step {step.name!r}, input {name!r}", _field(step, name), f"{step.model} takes")
    for spec in model.inputs:
        if spec.name not in given:
            raise InvalidInput(
                f"step {step.name!r}, input {spec.name!r}: missing; {step.model} takes it as {_shown(spec)}",
                field=_field(step, spec.name),
            )
        _check_fit(step, spec, given[spec.name])
    return Signature(model.inputs, _selected(step, model))


def _selected(step: Step, model: Signature) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in model.outputs}
    names = [output for output in step.outputs if isinstance(output, str)] or list(by_name)
    for name in names:
        where = f"step {step.name!r}, output {name!r}"
        if name not in by_name:
            _unknown(name, list(by_name), where, _field(step, name, "outputs"), f"{step.model} gives")
        if names.count(name) > 1:
            raise InvalidInput(f"{where}: stands twice", field=_field(step, name, "outputs"))
        if by_name[name].shape[:1] != (-1,):
            _not_rows(where, by_name[name], _field(step, name, "outputs"))
    return tuple(by_name[name] for name in names)


def _check_fit(step: Step, spec: TensorSpec, given: TensorSpec) -> None:
    """A free dimension fits any: what it turns out to be is looked at in each run."""
    where, field = f"step {step.name!r}, input {spec.name!r}", _field(step, spec.name)
    if spec.shape[:1] != (-1,):
        _not_rows(where, spec, field)
    fits = len(spec.shape) == len(given.shape) and all(
        n == m or -1 in (n, m) for n, m in zip(spec.shape, given.shape, strict=True)
    )
    if spec.datatype != given.datatype or not fits:
        raise InvalidInput(
            f"{where}: {step.model} takes {_shown(spec)}, {step.inputs[spec.name]!r} is {_shown(given)}", field=field
        )


def _check_tensor(spec: TensorSpec, where: str, field: str) -> None:
    if spec.datatype not in DATATYPES:
        raise InvalidInput(f"{where}: datatype {spec.datatype!r}, expected one of {', '.join(DATATYPES)}", field=field)
    if spec.shape[:1] != (-1,):
        _not_rows(where, spec, field)
    if any(n < 1 and n != -1 for n in spec.shape):
        raise InvalidInput(f"{where}: shape {list(spec.shape)}, expected sizes from 1, or -1 for any", field=field)


def _check_used(
    pipeline: Pipeline, ordered: Sequence[Step], signatures: Mapping[str, Signature], specs: Mapping[str, TensorSpec]
) -> None:
    used = {source for step in ordered for source in step.inputs.values()} | {one.source for one in pipeline.outputs}
    for one in pipeline.inputs:
        if one.name not in used:
            raise InvalidInput(f"input {one.name!r}: no step reads it", field=f"inputs.{one.name}")
    for step in ordered:
        kept = [spec.name for spec in signatures[step.name].outputs if f"{step.name}.{spec.name}" in used]
        for spec in signatures[step.name].outputs:
            if spec.name not in kept:
                listed = ", ".join(f'"{name}"' for name in kept)
                raise InvalidInput(
                    f"step {step.name!r}, output {spec.name!r}: nobody reads it",
                    field=_field(step, spec.name, "outputs"),
                    hint=f"compute only what is read: outputs = [{listed}]" if step.model and kept else "leave it out",
                )


def _number(
    pipeline: Pipeline,
    ordered: Sequence[Step],
    signatures: Mapping[str, Signature],
    signature: Signature,
    names: Sequence[str],
) -> Plan:
    number = {name: k for k, name in enumerate(names)}
    results = tuple(number[one.source] for one in pipeline.outputs)
    readers = [*results]
    last: dict[int, str] = {}
    for step in ordered:
        for source in step.inputs.values():
            readers.append(number[source])
            last[number[source]] = step.name
    steps = []
    for step in ordered:
        own = signatures[step.name]
        read = tuple(number[step.inputs[spec.name]] for spec in own.inputs)
        written = tuple(number[f"{step.name}.{spec.name}"] for spec in own.outputs)
        done = tuple(k for k in dict.fromkeys(read) if last[k] == step.name and k not in results)
        shared = tuple(k < len(pipeline.inputs) or readers.count(k) > 1 for k in read)
        steps.append(PlannedStep(step, own, read, shared, written, done))
    return Plan(signature, tuple(steps), results, len(names))


def _field(step: Step, tensor: str, kind: str = "inputs") -> str:
    return f"steps.{step.name}.{kind}.{tensor}"


def _shown(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"


def _unknown(name: str, known: Mapping[str, object] | Sequence[str], where: str, field: str, has: str = "") -> NoReturn:
    listed = ", ".join(map(repr, known))
    said = f"{where}: unknown; {has} {listed}" if has else f"{where}: {name!r} is unknown; there are {listed}"
    raise InvalidInput(said, field=field, hint=did_you_mean(name, known))


def _not_rows(where: str, spec: TensorSpec, field: str) -> NoReturn:
    raise InvalidInput(
        f"{where}: shape {list(spec.shape)} does not begin with -1: the steps of a pipeline run batches of rows",
        field=field,
    )
