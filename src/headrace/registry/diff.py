"""What differs between two versions. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.core.resources import Difference, Version
from headrace.core.signature import TensorSpec

PLAIN = ("engine", "digest", "size_bytes", "file_name", "state", "description")
COUNTED = ("size_bytes",)


def diff(old: Version, new: Version) -> list[Difference]:
    """The fields that differ, in the order of a version's fields; metrics and sizes with by how much."""
    before, after = dict(_fields(old)), dict(_fields(new))
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


def _spec(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"
