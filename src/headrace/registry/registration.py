"""What is known of a version before its artifact is opened: its engine. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from headrace.core.errors import InvalidInput
from headrace.core.golden import CASES_MAX, Golden
from headrace.core.names import NAME, VersionName, check_name, read_version
from headrace.core.resources import Engine, Lineage, VersionCreate
from headrace.registry.artifacts import check_digest

ENGINE_OF_SUFFIX: dict[str, Engine] = {
    ".onnx": "onnx",
    ".json": "xgboost",
    ".ubj": "xgboost",
    ".model": "xgboost",
    ".txt": "lightgbm",
    ".lgb": "lightgbm",
    ".skops": "sklearn",
    ".pkl": "sklearn",
    ".joblib": "sklearn",
    ".py": "python",
    ".tar": "python",
    ".toml": "pipeline",
    ".pt": "torch",
    ".pt2": "torch",
}
TEXT_MAX = 1_000
"""Characters of what lineage says."""
ENTRIES_MAX = 100
"""Features, and entries of `metadata`."""
FEATURE = re.compile(rf"{NAME.pattern}@[1-9][0-9]{{0,8}}")
VERSION_MAX = 999_999_999
"""The highest number that may be asked for."""
BATCH_MAX = 65_536
"""Rows that `options.batch_max` may allow at most."""
RUN_LIMIT_S = (0.1, 3600.0)
"""Least and most of `options.run_limit_s`."""


def check(create: VersionCreate) -> Engine:
    """The engine that the version runs on.

    Raises:
        InvalidInput: a field that is out of range, or a file name that tells no engine.
    """
    check_digest(create.digest)
    name = create.file_name
    if not 1 <= len(name) <= 255 or "/" in name or "\0" in name:
        raise InvalidInput(f"file_name: {name[:80]!r}, expected 1 to 255 characters without a slash", field="file_name")
    for metric, value in create.metrics.items():
        if not math.isfinite(value):
            raise InvalidInput(f"metrics.{metric}: {value} is not a finite number", field=f"metrics.{metric}")
    if create.options is not None and not 1 <= create.options.batch_max <= BATCH_MAX:
        given = create.options.batch_max
        raise InvalidInput(f"options.batch_max: {given}, expected 1 to {BATCH_MAX} rows", field="options.batch_max")
    limit_s = create.options.run_limit_s if create.options is not None else None
    if limit_s is not None and not RUN_LIMIT_S[0] <= limit_s <= RUN_LIMIT_S[1]:
        expected = "expected {:g} to {:g} seconds".format(*RUN_LIMIT_S)
        raise InvalidInput(f"options.run_limit_s: {limit_s:g}, {expected}", field="options.run_limit_s")
    if create.version is not None and not 1 <= create.version <= VERSION_MAX:
        raise InvalidInput(f"version: {create.version}, expected 1 to {VERSION_MAX}", field="version")
    if create.lineage is not None:
        check_lineage(create.lineage)
    if create.golden is not None:
        check_golden(create.golden)
    engine = create.engine or ENGINE_OF_SUFFIX.get(PurePosixPath(name).suffix.lower())
    if engine is None:
        raise InvalidInput(
            f"file_name: {name!r} tells no engine",
            field="file_name",
            hint="give engine, or a name that ends in one of " + " ".join(ENGINE_OF_SUFFIX),
        )
    return engine


@dataclass(frozen=True, slots=True)
class Parent:
    """The version that another was made from; of the same model where none is named."""

    model: str | None
    version: VersionName


def read_parent(text: str) -> Parent:
    """``3``, ``churn@3`` or ``churn@champion``. Raises InvalidInput."""
    model, at, version = text.rpartition("@")
    return Parent(check_name(model, "lineage.parent") if at else None, read_version(version, "lineage.parent"))


def check_lineage(lineage: Lineage) -> None:
    """Raises InvalidInput for what cannot be kept."""
    for field in ("training_set", "code"):
        if len(getattr(lineage, field)) > TEXT_MAX:
            raise InvalidInput(f"lineage.{field}: longer than {TEXT_MAX} characters", field=f"lineage.{field}")
    if lineage.parent is not None:
        read_parent(lineage.parent)
    for field in ("features", "metadata"):
        if len(getattr(lineage, field)) > ENTRIES_MAX:
            raise InvalidInput(f"lineage.{field}: more than {ENTRIES_MAX}", field=f"lineage.{field}")
    for feature in lineage.features:
        if not FEATURE.fullmatch(feature):
            text = f"lineage.features: {feature[:80]!r}, expected name@version such as tenure_days@2"
            raise InvalidInput(text, field="lineage.features")
    for name, value in lineage.metadata.items():
        if not 1 <= len(name) <= 100 or len(value) > TEXT_MAX:
            expected = f"expected a name of 1 to 100 and a text of up to {TEXT_MAX} characters"
            text = f"lineage.metadata: {name[:40]!r}, {expected}"
            raise InvalidInput(text, field="lineage.metadata")


def check_golden(golden: Golden) -> None:
    """Raises InvalidInput for signature tests that test nothing, or that no one could tell apart."""
    if not 1 <= len(golden.cases) <= CASES_MAX:
        raise InvalidInput(f"golden.cases: {len(golden.cases)}, expected 1 to {CASES_MAX}", field="golden.cases")
    names = [case.name for case in golden.cases if case.name]
    if len(set(names)) < len(names):
        raise InvalidInput("golden.cases: two cases have the same name", field="golden.cases")
    for number, case in enumerate(golden.cases):
        field = f"golden.cases[{number}]"
        if not case.outputs:
            raise InvalidInput(f"{field}.outputs: none, expected at least one", field=f"{field}.outputs")
        if len(case.name) > 100:
            raise InvalidInput(f"{field}.name: longer than 100 characters", field=f"{field}.name")
        if case.tolerance is not None:
            _check_tolerance(case.tolerance, f"{field}.tolerance")
    _check_tolerance(golden.tolerance, "golden.tolerance")


def _check_tolerance(value: float, field: str) -> None:
    if not 0 <= value < math.inf:
        raise InvalidInput(f"{field}: {value}, expected a finite number from 0", field=field)
