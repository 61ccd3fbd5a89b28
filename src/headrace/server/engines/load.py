"""From an artifact to a running engine: which adapter, with which defaults, and what a failure says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from headrace.core.errors import HeadraceError, InvalidInput, Unprocessable
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, ServedPart
from headrace.server.engines import artifact
from headrace.server.engines.onnx_form import Form
from headrace.server.engines.port import Engine
from headrace.server.engines.tensors import check

DEFAULTS: dict[str, EngineOptions] = {
    "onnx": EngineOptions(nan="reject"),
    "sklearn": EngineOptions(nan="reject"),
    "python": EngineOptions(nan="reject"),
    "torch": EngineOptions(nan="reject"),
    # Gradient-boosted trees are trained with missing values and route them themselves.
    "xgboost": EngineOptions(nan="allow"),
    "lightgbm": EngineOptions(nan="allow"),
    # Each model in it has its own say too.
    "pipeline": EngineOptions(nan="reject"),
}
"""Options of a version that gives none, by engine."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A running engine and the options it runs with."""

    engine: Engine
    options: EngineOptions


class Adapter(Protocol):
    """Makes an engine of an artifact."""

    def __call__(self, path: Path, options: EngineOptions, signature: Signature | None, threads: int) -> Engine:
        """Load. Raises HeadraceError, or whatever the engine's library raises."""


def load(
    engine: str,
    path: Path,
    options: EngineOptions | None,
    signature: Signature | None,
    threads: int = 1,
    parts: Sequence[ServedPart] = (),
    form: Form | None = None,
    frugal: bool = False,
) -> Loaded:
    """Load an artifact.

    Args:
        engine: its engine's name, a key of `DEFAULTS`.
        path: the file. Its format is told by its content.
        options: None for the engine's defaults.
        signature: what the version says of itself; checked against the model. None to read it out of the model;
            without outputs, these are the model's own.
        threads: of the engine within one run.
        parts: of a pipeline, the versions that it runs.
        form: of an ONNX model, the serving form to open in its place.
        frugal: rather less memory than quicker runs, where the engine has the choice.

    Raises:
        InvalidInput: an unknown engine, an option or signature that the model contradicts; names the field.
        Unprocessable: the artifact does not load, or may not (an untrusted pickle).
    """
    adapter = _adapter(engine, parts, form, frugal)
    options = DEFAULTS[engine] if options is None else options
    if signature is not None:
        check(signature, partly=True)
    artifact.head(path)
    try:
        loaded = adapter(path, options, signature, threads)
        check(loaded.signature)
    except HeadraceError:
        raise
    except (Exception, SystemExit) as error:  # whatever a library or a model's own code raises
        raise Unprocessable(
            f"the {engine} model does not load: {artifact.reason(error, path)}", field="digest"
        ) from error
    return Loaded(loaded, options)


def preload(engine: str, shared: bool = False) -> None:
    """Import what an engine needs, before there is an artifact.

    Args:
        engine: its name.
        shared: many processes will be forked from this one: also import what only some models need.

    Raises:
        InvalidInput: an unknown engine.
        Unprocessable: one that is not installed.
    """
    _adapter(engine, ())
    match engine:
        case "xgboost":
            from headrace.server.engines import xgboost

            xgboost.shared_library()
        case "lightgbm":
            from headrace.server.engines import lightgbm

            lightgbm.shared_library()
        case "onnx" if shared:
            from headrace.server.engines import onnx

            onnx.open_smallest()
        case "sklearn" if shared:
            import skops.io  # with all of scikit-learn  # noqa: F401


def _adapter(engine: str, parts: Sequence[ServedPart], form: Form | None = None, frugal: bool = False) -> Adapter:
    """The one place that imports lazily: a replica pays, in memory and start-up, only for the engine that it runs."""
    match engine:
        case "onnx":
            from headrace.server.engines.onnx import OnnxEngine

            return partial(OnnxEngine, form=form, frugal=frugal)
        case "xgboost":
            from headrace.server.engines.xgboost import XgboostEngine

            return XgboostEngine
        case "lightgbm":
            from headrace.server.engines.lightgbm import LightgbmEngine

            return LightgbmEngine
        case "sklearn":
            from headrace.server.engines.sklearn import SklearnEngine

            return SklearnEngine
        case "python":
            from headrace.server.engines.python import PythonEngine

            return PythonEngine
        case "pipeline":
            from headrace.server.engines.pipeline import PipelineEngine

            return partial(PipelineEngine, parts)
        case "torch":
            return _torch()
    raise InvalidInput(f"engine: {engine!r}, expected one of {', '.join(DEFAULTS)}", field="engine")


def _torch() -> Adapter:
    """The engine of the extra `torch`. Raises Unprocessable where it is not installed."""
    try:
        from headrace.server.engines.torch import TorchEngine
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise Unprocessable(
            "the torch engine needs PyTorch, which this platform does not have",
            field="engine",
            hint="install it where the platform runs: pip install 'headrace[torch]'; or export the model to ONNX",
        ) from None
    return TorchEngine
