"""MLflow model directories: ``MLmodel`` and the files that its flavours name.

The first flavour that an engine here runs is taken: onnx, xgboost, lightgbm, sklearn. Any other model has at least the
flavour ``python_function``, which is code: it becomes a model of the python engine that loads it with MLflow, and only
an operator's trust admits it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from headrace.core.errors import Unprocessable
from headrace.core.resources import Engine
from headrace.core.signature import Signature, TensorSpec
from headrace.registry import pickles
from headrace.registry.importers import onnx, pyfunc
from headrace.registry.importers.candidate import Asked, Candidate, inside, name_of
from headrace.registry.importers.mlflow_signature import Schema, parse

MODEL_FILE = "MLmodel"
Flavour = Mapping[str, Any]
Read = Callable[[Path, "_Model", Asked], Candidate]
_TABLES: dict[Engine, str] = {"sklearn": "FP64", "lightgbm": "FP64", "xgboost": "FP32"}
"""Engines that take one table, and of which numbers."""
_TRUST = "say --trust if you are an operator and trust whoever made it"


class _Model:
    """What ``MLmodel`` says."""

    def __init__(self, folder: Path) -> None:
        self.document = _document(folder / MODEL_FILE)
        flavours = self.document.get("flavors")
        if not isinstance(flavours, dict) or not flavours:
            raise Unprocessable("MLmodel: flavors: expected at least one", field="flavors")
        self.flavours: dict[str, Flavour] = {
            str(name): flavour if isinstance(flavour, dict) else {} for name, flavour in flavours.items()
        }
        signature = self.document.get("signature") or {}
        if not isinstance(signature, dict):
            raise Unprocessable("MLmodel: signature: expected inputs and outputs", field="signature")
        self.inputs = parse(signature.get("inputs"), "inputs")
        self.outputs = parse(signature.get("outputs"), "outputs")
        self.params = signature.get("params")
        self.name = name_of(_model_name(folder))


def read(folder: Path, asked: Asked) -> Candidate:
    """The model as a candidate.

    Raises:
        Unprocessable: ``MLmodel`` is no such document, a file that it names is missing, no engine runs any of its
            flavours, or it holds code that nobody trusts.
    """
    model = _Model(folder)
    flavour = next((name for name in _READERS if name in model.flavours), None)
    if flavour is None:
        raise Unprocessable(
            f"MLmodel: no engine runs the flavour {', '.join(model.flavours)}: expected one of {', '.join(_READERS)}",
            field="flavors",
        )
    found = _READERS[flavour](folder, model, asked)
    notes = found.notes
    if model.params is not None:
        notes = (*notes, "the signature's params have their defaults: a request cannot set them")
    return Candidate(
        model.name,
        found.path,
        found.file_name,
        found.engine,
        asked.signature or found.signature,
        trust=found.trust,
        metrics=_metrics(folder),
        tags={"mlflow.flavor": flavour, **_tags(model, folder)},
        notes=notes,
    )


# ------------------------------------------------------------------------------------------------ flavours
def _onnx(folder: Path, model: _Model, asked: Asked) -> Candidate:
    path = inside(folder, model.flavours["onnx"].get("data"), "MLmodel: flavors.onnx.data")
    found = onnx.read(path, asked)
    _check_ports(path, model)
    return found


def _check_ports(path: Path, model: _Model) -> None:
    """MLflow's signature names the model's tensors, in any order. Raises Unprocessable where it names others."""
    for part, schema, true in zip(("inputs", "outputs"), (model.inputs, model.outputs), onnx.ports(path), strict=True):
        named = {spec.name for spec in schema.specs if spec.name} if schema is not None else set()
        wrong = sorted(named.difference(true))
        if wrong and not (schema and schema.columns):  # a table's columns are none of the tensors
            raise Unprocessable(
                f"MLmodel: signature.{part} names {', '.join(wrong)}, the model has {', '.join(true)}",
                field=f"signature.{part}",
            )


def _booster(engine: Engine) -> Read:
    """XGBoost and LightGBM: the library's own format, or the scikit-learn wrapper as a pickle."""

    def read_booster(folder: Path, model: _Model, asked: Asked) -> Candidate:
        data = model.flavours[engine].get("data")
        path = inside(folder, data, f"MLmodel: flavors.{engine}.data")
        if path.suffix in (".pkl", ".skops"):
            return _estimator(path, model, asked)
        return Candidate(model.name, path, path.name, engine, _table(model, engine))

    return read_booster


def _sklearn(folder: Path, model: _Model, asked: Asked) -> Candidate:
    data = model.flavours["sklearn"].get("pickled_model")
    path = inside(folder, data, "MLmodel: flavors.sklearn.pickled_model")
    if model.inputs is not None and not _one_array(model.inputs):
        return _pyfunc(folder, model, asked)  # it takes a frame, by the names of its columns
    return _estimator(path, model, asked)


def _estimator(path: Path, model: _Model, asked: Asked) -> Candidate:
    """A file of scikit-learn's: skops, or a pickle that somebody trusts."""
    if path.suffix != ".skops" and not asked.trust:
        raise pickles.refusal(path, path.name, "trust", "log the model with serialization_format='skops'")
    return Candidate(model.name, path, path.name, "sklearn", _table(model, "sklearn"), trust=asked.trust)


def _one_array(schema: Schema) -> bool:
    """Whether a table of numbers, one column of text, or one tensor: what fits into one array."""
    return schema.numeric or len(schema.specs) == 1


def _table(model: _Model, engine: Engine) -> Signature | None:
    """The one input that these engines take, as MLflow's signature has it; the outputs are the engine's to say."""
    schema = model.inputs
    if schema is None:
        return None
    if schema.columns and not schema.numeric:
        return Signature((TensorSpec("input", "BYTES", (-1,)),), ())
    shape = (-1, len(schema.specs)) if schema.columns else schema.specs[0].shape
    return Signature((TensorSpec("input", _TABLES[engine], shape),), ())


def _pyfunc(folder: Path, model: _Model, asked: Asked) -> Candidate:
    if not asked.trust:
        found = [f"{path.name}: {pickles.scan(path)}" for path in sorted(folder.rglob("*.pkl"))]
        raise Unprocessable(
            "the model runs as MLflow's python_function, which is code" + "".join(f"; {text}" for text in found[:3]),
            field="trust",
            hint=_TRUST,
        )
    signature = asked.signature
    if signature is None:
        if model.inputs is None or model.outputs is None:
            raise Unprocessable(
                "MLmodel: signature: inputs and outputs are needed of a python_function",
                field="signature",
                hint="log it with signature=infer_signature(x, y), or give one: --signature FILE",
            )
        signature = Signature(model.inputs.named("input", "input_"), model.outputs.named("output", "output_"))
    path = asked.scratch / f"{model.name}.tar"
    columns = model.inputs is not None and model.inputs.columns
    pyfunc.write(path, folder, signature, columns, named=_named(model.inputs))
    note = "runs in MLflow itself: the platform needs mlflow-skinny, pandas and the model's own requirements"
    return Candidate(model.name, path, path.name, "python", signature, trust=True, notes=(note,))


def _named(schema: Schema | None) -> bool:
    return schema is None or any(spec.name for spec in schema.specs)


_READERS: dict[str, Read] = {
    "onnx": _onnx,
    "xgboost": _booster("xgboost"),
    "lightgbm": _booster("lightgbm"),
    "sklearn": _sklearn,
    "python_function": _pyfunc,
}


# ------------------------------------------------------------------------------------------- what it says of itself
def _document(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise Unprocessable(f"{path.name} cannot be read: {error.strerror}", field="source") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unprocessable(f"MLmodel is no YAML: {line}", field="source") from None
    if not isinstance(found, dict):
        raise Unprocessable("MLmodel: expected a document with flavors", field="source")
    return found


def _model_name(folder: Path) -> str:
    """The folder's name; in MLflow's own store that is ``artifacts``, and the one above tells more."""
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "artifacts" else resolved.name


def _tags(model: _Model, folder: Path) -> dict[str, str]:
    """Where the model comes from."""
    document = model.document
    kept = {
        "mlflow.run_id": document.get("run_id"),
        "mlflow.model_id": document.get("model_id"),
        "mlflow.model_uuid": document.get("model_uuid"),
        "mlflow.version": document.get("mlflow_version"),
        "mlflow.created": document.get("utc_time_created"),
    }
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        kept.update({str(name): value for name, value in metadata.items() if isinstance(value, str | int | float)})
    if model.inputs is not None and model.inputs.columns:
        kept["mlflow.columns"] = ", ".join(spec.name for spec in model.inputs.specs)
    run = _store_folder(folder)
    if run is not None:
        kept.update({item.name: item.read_text().strip() for item in _files(run / "tags", "mlflow.")})
    return {name: str(value) for name, value in kept.items() if value not in (None, "")}


def _metrics(folder: Path) -> dict[str, float]:
    """The last value of each metric of the run, where the model lies in MLflow's own store of files."""
    run = _store_folder(folder)
    found = {}
    for item in _files(run / "metrics") if run is not None else ():
        words = item.read_text().strip().rpartition("\n")[2].split()  # time, value, step
        with suppress(IndexError, ValueError):
            found[item.name] = float(words[1])
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _store_folder(folder: Path) -> Path | None:
    """The folder of the run, or of the logged model, that holds this one: ``<it>/artifacts[/path]``."""
    for parent in folder.resolve().parents[:4]:
        if (parent / "meta.yaml").is_file() and (parent / "metrics").is_dir():
            return parent
    return None


def _files(folder: Path, without: str = "\0") -> list[Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [item for item in found if item.is_file() and not item.name.startswith(without)]
