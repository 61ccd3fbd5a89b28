"""The platform's state as a fleet file. Pure; the same state gives the same text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from headrace.client.fleet.state import WAITING, Fields, Key, State, nest

_BARE = re.compile(r"[A-Za-z0-9_-]+")
HEADER = "# What `headrace export` found. `headrace apply -f` makes a platform so.\n"


def written(state: State, tenant: str | None = None) -> str:
    """A fleet file's text.

    Args:
        state: the platform's.
        tenant: only its models; all where none is named.
    """
    keys = sorted(
        (key for key in state if tenant in (None, key.tenant)),
        key=lambda key: (key.model, key.kind, key.number, key.name),
    )
    models: dict[str, list[Key]] = {}
    tables = [HEADER]
    for key in keys:
        if key.kind == "tenant":
            tables.append(_table(["tenants", key.name], nest(state[key])))
        else:
            models.setdefault(key.model, []).append(key)
    for model, of in models.items():
        tables += _model(model, {key: state[key] for key in of})
    return "\n".join(tables)


def _model(model: str, of: State) -> Iterable[str]:
    def named(kind: str) -> dict[str, Fields]:
        return {key.name: fields for key, fields in of.items() if key.kind == kind}

    at = ["models", model]
    fields = dict(of.get(Key("model", model), {}))
    fields["grants"] = list(named("grant"))
    fields["aliases"] = {alias: fields["version"] for alias, fields in named("alias").items()}
    yield _table(at, nest(fields))
    states = named("state")
    for number, version in named("version").items():
        given = {name: value for name, value in nest(version).items() if value not in ({}, [], "", None)}
        lineage = given.get("lineage", {})
        given["lineage"] = {name: value for name, value in lineage.items() if value not in ({}, [], "", None)}
        if not given["lineage"]:
            del given["lineage"]
        if (state := states.get(number, {}).get("state")) in ("approved", "retired"):
            given["state"] = state
        yield _table([*at, "versions", number], given)
    deployments = named("deployment")
    if not deployments:
        yield _table([*at, "deployments"], {})
    for number, deployment in deployments.items():
        yield _table([*at, "deployments", number], {k: v for k, v in nest(deployment).items() if k != WAITING})
    policy = {"weights": named("traffic")[""]["weights"]} if named("traffic") else {}
    overrides = {tenant: fields["version"] for tenant, fields in named("override").items()}
    yield _table([*at, "traffic"], {**policy, "overrides": overrides})


def _table(path: list[str], values: Mapping[str, Any]) -> str:
    lines = [f"[{'.'.join(_key(part) for part in path)}]"]
    lines += [f"{_key(name)} = {_value(value)}" for name, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    """TOML of what JSON has but null: a table's entries that are null are left out."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(name)} = {_value(one)}" for name, one in value.items() if one is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    text = msgspec.json.encode(value).decode()
    return text.replace("\x7f", "\\u007f") if isinstance(value, str) else text
