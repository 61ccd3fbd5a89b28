"""What is known of a version before its artifact is opened: its engine. Pure."""

from __future__ import annotations

import math
from pathlib import PurePosixPath

from headrace.core.errors import InvalidInput
from headrace.core.resources import Engine, VersionCreate
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
    engine = create.engine or ENGINE_OF_SUFFIX.get(PurePosixPath(name).suffix.lower())
    if engine is None:
        raise InvalidInput(
            f"file_name: {name!r} tells no engine",
            field="file_name",
            hint="give engine, or a name that ends in one of " + " ".join(ENGINE_OF_SUFFIX),
        )
    return engine
