"""What differs between two versions. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.core.reference import Reference
from headrace.core.resources import Difference, Version
from headrace.core.signature import TensorSpec

PLAIN = ("engine", "digest", "size_bytes", "file_name", "state", "description")
COUNTED = ("size_bytes",)


def diff(
    old: Version, new: Version, old_reference: Reference | None = None, new_reference: Reference | None = None
) -> list[Difference]:
    """The fields that differ, in the order of a version's fields; metrics and sizes with by how much. Of reference
    statistics: their rows and, for each feature, what is missing, mean and standard deviation."""
    before = {**dict(_fields(old)), **dict(_statistics(old, old_reference))}
    after = {**dict(_fields(new)), **dict(_statistics(new, new_reference))}
    found = []
    for field in sorted({**before, **after}, key=lambda name: _place(name.split(".")[0])):
        one, other = before.get(field), after.get(field)
        if one == other and field in before and field in after:
            continue
        change = None
        if isinstance(one, int | float) and isinstance(other, int | float) and not isinstance(one, bool):
            change = other - one
        found.append(Difference(field, one, other, change))
    return found


def _place(name: str) -> int:
    return Version.__struct_fields__.index(name)


def _fields(version: Version) -> Iterator[tuple[str, object]]:
    """``metrics.auc`` -> its value, and so on."""
    for name in PLAIN:
        yield name, getattr(version, name)
    for kind in ("inputs", "outputs"):
        for spec in getattr(version.signature, kind):
            yield f"signature.{kind}.{spec.name}", _spec(spec)
    for group in ("options", "metrics", "tags", "lineage"):
        value = getattr(version, group)
        for name, one in (value if isinstance(value, dict) else msgspec.to_builtins(value)).items():
            if isinstance(one, dict):
                yield from ((f"{group}.{name}.{inner}", of) for inner, of in one.items())
            else:
                yield f"{group}.{name}", one


def _statistics(version: Version, found: Reference | None) -> Iterator[tuple[str, object]]:
    if version.reference is None or found is None:
        return
    yield "reference.digest", version.reference.sample.digest
    yield "reference.rows", found.rows
    for kind in ("inputs", "outputs"):
        for feature in getattr(found, kind):
            for name in ("missing", "mean", "std"):
                yield f"reference.{kind}.{feature.name}.{name}", getattr(feature, name)


def _spec(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"
