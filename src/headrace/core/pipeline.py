"""A pipeline's declaration, ``pipeline.toml``: steps - registered models, Python functions - joined by named tensors.

::

    inputs = [{ name = "image", datatype = "BYTES", shape = [-1], example_file = "cat.jpg" }]
    outputs = [{ name = "label", from = "name.label" }]

    [[steps]]
    name = "decode"
    python = "steps.py:decode"
    inputs = { image = "image" }
    outputs = [{ name = "pixels", datatype = "FP32", shape = [-1, 224, 224, 3] }]

    [[steps]]
    name = "resnet"
    model = "resnet@3"
    inputs = { "input:0" = "decode.pixels" }

A source is an input of the pipeline by its name, or ``step.tensor``. Here is what can be said of a declaration by
itself; `server.engines.pipeline_plan` checks it against the models that it names.
"""

from __future__ import annotations

import re
import tarfile
import tomllib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from headrace.core.errors import InvalidInput, Unprocessable
from headrace.core.names import parse_reference
from headrace.core.signature import TensorSpec

FILE = "pipeline.toml"
STEPS_MAX = 64
TEXT_MAX = 1 << 20
"""Bytes of a declaration."""
MEMBERS_MAX = 100_000
"""Files in a tar that are looked at."""
ROWS_MAX = 65_536
"""Rows that a step's `batch_max` may allow at most."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_PYTHON = re.compile(r"([\w./-]+\.py):([A-Za-z_]\w*)")


class Tensor(TensorSpec, frozen=True, forbid_unknown_fields=True):
    """A tensor that the declaration itself describes."""


class Input(TensorSpec, frozen=True, forbid_unknown_fields=True):
    """An input of the pipeline, and an example row of it to warm up with."""

    example: Any = None
    """Text for BYTES, a number, or (nested) lists of either: one row."""
    example_file: str | None = None
    """For BYTES: a file of the artifact whose content is the example."""


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output of the pipeline."""

    name: str
    source: str = msgspec.field(name="from")


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step: `model` or `python`."""

    name: str
    inputs: dict[str, str]
    """The step's tensor -> its source."""
    model: str | None = None
    """``[tenant/]name@version``."""
    python: str | None = None
    """``file.py:function``, or a class with `predict`."""
    outputs: tuple[str | Tensor, ...] = ()
    """Of a model, names of those to compute (all when left out); of Python, what it gives."""
    batch_max: int | None = None
    """Most rows in one run of the step; None: the model's own, and no limit for Python."""


class Pipeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole declaration."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    steps: tuple[Step, ...]
    files: tuple[str, ...] = ()
    """Further files that the steps need: taken along by whoever packs the declaration alone."""

    @property
    def references(self) -> tuple[str, ...]:
        """The registered versions that it runs, as they are written, each once."""
        return tuple(dict.fromkeys(step.model for step in self.steps if step.model is not None))

    @property
    def sources(self) -> tuple[str, ...]:
        """Files beside the declaration that it names, each once, sorted."""
        named = {python_of(step)[0] for step in self.steps if step.python is not None}
        examples = {one.example_file for one in self.inputs if one.example_file is not None}
        return tuple(sorted(named | examples | set(self.files)))


def python_of(step: Step) -> tuple[str, str]:
    """File and name in it of a Python step."""
    found = _PYTHON.fullmatch(step.python or "")
    if found is None:
        raise InvalidInput(
            f"step {step.name!r}: python = {step.python!r}, expected 'file.py:function'",
            field=f"steps.{step.name}.python",
        )
    return found[1], found[2]


def parse(text: str) -> Pipeline:
    """A declaration out of its text.

    Raises:
        InvalidInput: names the step and the tensor at fault.
    """
    try:
        found = msgspec.convert(tomllib.loads(text), Pipeline)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{FILE}: not TOML: {error}", field="pipeline") from None
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        where = path.strip(".`")
        raise InvalidInput(f"{FILE}: {where + ': ' if where else ''}{message}", field=where or "pipeline") from None
    for field, items in (("inputs", found.inputs), ("outputs", found.outputs), ("steps", found.steps)):
        names = [item.name for item in items]
        if not names:
            raise InvalidInput(f"{FILE}: {field}: empty, at least one is needed", field=field)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidInput(f"{FILE}: {field}: the name {twice!r} stands twice", field=field)
    if len(found.steps) > STEPS_MAX:
        raise InvalidInput(f"{FILE}: {len(found.steps)} steps, at most {STEPS_MAX}", field="steps")
    for one in found.inputs:
        _check_input(one)
    for step in found.steps:
        _check_step(step)
    for path in found.sources:
        if not _inside(path):
            raise InvalidInput(f"{FILE}: file {path!r}: expected a path inside the pipeline's folder", field="files")
    return found


def _check_input(one: Input) -> None:
    field = f"inputs.{one.name}"
    if "." in one.name or not one.name:
        raise InvalidInput(f"input {one.name!r}: expected a name without a dot (step.tensor has one)", field=field)
    if one.shape[:1] != (-1,):
        raise InvalidInput(
            f"input {one.name!r}: shape {list(one.shape)}, expected -1 first: the rows of the batch", field=field
        )
    if one.example_file is not None and (one.datatype != "BYTES" or one.example is not None):
        raise InvalidInput(f"input {one.name!r}: example_file is for BYTES without another example", field=field)


def _check_step(step: Step) -> None:
    name, field = step.name, f"steps.{step.name}"
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"step {name!r}: expected 1 to 63 of A-Z a-z 0-9 _ -, starting with a letter or digit", field="steps"
        )
    if (step.model is None) == (step.python is None):
        raise InvalidInput(f"step {name!r}: expected either model or python", field=field)
    if step.batch_max is not None and not 1 <= step.batch_max <= ROWS_MAX:
        raise InvalidInput(
            f"step {name!r}: batch_max {step.batch_max}, expected 1 to {ROWS_MAX} rows", field=f"{field}.batch_max"
        )
    if not step.inputs:
        raise InvalidInput(f"step {name!r}: inputs are missing", field=f"{field}.inputs")
    if step.model is not None:
        if parse_reference(step.model, f"{field}.model").version is None:
            raise InvalidInput(
                f"step {name!r}: model = {step.model!r}, expected a version",
                field=f"{field}.model",
                hint=f"for example {step.model}@1: a pipeline never changes, so it says which versions it runs",
            )
        if any(not isinstance(output, str) for output in step.outputs):
            raise InvalidInput(
                f"step {name!r}: outputs of a model are names: its signature says the rest", field=f"{field}.outputs"
            )
        return
    python_of(step)
    declared = [output for output in step.outputs if isinstance(output, Tensor)]
    if not declared or len(declared) != len(step.outputs):
        raise InvalidInput(
            f"step {name!r}: outputs of Python are tables",
            field=f"{field}.outputs",
            hint='for example [{ name = "pixels", datatype = "FP32", shape = [-1, 224, 224, 3] }]',
        )
    names = [output.name for output in declared]
    for output in declared:
        if names.count(output.name) > 1:
            raise InvalidInput(
                f"step {name!r}: output {output.name!r} stands twice", field=f"{field}.outputs.{output.name}"
            )


def _inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts


def read(path: Path) -> Pipeline:
    """The declaration in an artifact: the file itself, or a tar of the folder that holds it.

    Raises:
        InvalidInput: names what is wrong with the declaration.
        Unprocessable: there is none.
    """
    try:
        content = _content(path)
    except OSError as error:
        raise Unprocessable(f"the artifact cannot be read: {error.strerror}", field="digest") from None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise Unprocessable(f"this is neither {FILE} nor an uncompressed tar of its folder", field="digest") from None
    return parse(text)


def _content(path: Path) -> bytes:
    if not tarfile.is_tarfile(path):  # of any compression: told below
        with path.open("rb") as file:
            return _bounded(file.read(TEXT_MAX + 1))
    try:
        with tarfile.open(path, "r:") as tar:
            member = tar.extractfile(_member(tar))
            assert member is not None
            return _bounded(member.read(TEXT_MAX + 1))
    except tarfile.TarError:
        raise Unprocessable(
            f"the tar cannot be read: expected an uncompressed one that holds {FILE}", field="digest"
        ) from None


def _bounded(content: bytes) -> bytes:
    if len(content) > TEXT_MAX:
        raise Unprocessable(f"{FILE} is larger than {TEXT_MAX} bytes", field="digest")
    return content


def _member(tar: tarfile.TarFile) -> tarfile.TarInfo:
    """Of the tar's top, or of a folder there."""
    below = None
    for member in _first(tar):
        parts = PurePosixPath(member.name).parts
        if member.isfile() and parts[-1:] == (FILE,):
            if len(parts) == 1:
                return member
            if len(parts) == 2 and below is None:
                below = member
    if below is None:
        raise Unprocessable(f"the tar holds no {FILE}", field="digest")
    return below


def _first(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    for count, member in enumerate(tar):
        if count >= MEMBERS_MAX:
            raise Unprocessable(f"the tar holds more than {MEMBERS_MAX} files", field="digest")
        yield member
