"""What a fleet consists of, as files and the platform both have it: resources by key, each with the fields that can be
set. The fields are those of the REST API's structs, so that a new one there is one here. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec

from headrace.core import resources as r
from headrace.core.names import parse_reference
from headrace.traffic.allocate import slot_counts, with_share

Kind = Literal["tenant", "version", "model", "grant", "state", "deployment", "traffic", "override", "alias"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Fields = Mapping[str, Any]
"""Name -> value; of a field that is a struct itself one entry per field of that: ``options.batch_max``."""
Field = msgspec.structs.FieldInfo


def settable(kind: type[msgspec.Struct], *without: str) -> dict[str, Field]:
    """The fields of a struct that a file may give."""
    return {field.name: field for field in msgspec.structs.fields(kind) if field.name not in without}


TENANT = settable(r.Tenant, "name", "created_at")
MODEL = settable(r.ModelUpdate, "reason")
VERSION = settable(r.VersionCreate, "golden", "version")
DEPLOYMENT = settable(r.DeploymentCreate, "model", "version", "tenant", "traffic_percent", "reason")
WAITING = "traffic_on_ready"
"""Field of a deployment that no file gives: the share that somebody asked it to take once it is ready."""


class Key(msgspec.Struct, frozen=True, order=True):
    """A resource."""

    kind: Kind
    model: str
    """``tenant/model``; empty for a tenant."""
    name: str = ""
    """Of a tenant or alias; a version's number; of a grant or override the tenant; empty for a model, its traffic."""

    def __str__(self) -> str:
        if self.kind in ("version", "state", "deployment", "alias"):
            return f"{self.kind} {self.model}@{self.name}"
        if self.kind in ("grant", "override"):
            return f"{self.kind} {self.model} {'to' if self.kind == 'grant' else 'of'} {self.name}"
        return f"{self.kind} {self.model or self.name}"

    @property
    def number(self) -> int:
        """Of a version, its state, or its deployment; 0 for anything else."""
        return int(self.name) if self.kind in ("version", "state", "deployment") else 0

    @property
    def tenant(self) -> str:
        """That the model belongs to, or the tenant itself."""
        return self.model.partition("/")[0] or self.name


State = dict[Key, Fields]


@dataclass(frozen=True, slots=True)
class Live:
    """The platform as it is."""

    state: State
    projected: Mapping[str, Mapping[str, float]]
    """Model -> its weights once every share that waits has been taken."""
    kept: frozenset[Key] = frozenset()
    """Deployments without traffic that a rollback would go back to: the platform keeps them, and stops them by itself
    when nothing goes back there any more."""


def flat(values: Mapping[str, Any], fields: Iterable[str], nested: Iterable[str]) -> Fields:
    """Some fields of a struct's built-in form, those of `nested` ones by their path."""
    found: dict[str, Any] = {}
    for name in fields:
        if name in nested and isinstance(values[name], dict):
            found |= {f"{name}.{inner}": value for inner, value in values[name].items()}
        else:
            found[name] = values[name]
    return found


def nest(fields: Fields) -> dict[str, Any]:
    """The opposite of `flat`."""
    found: dict[str, Any] = {}
    for path, value in fields.items():
        name, dot, inner = path.partition(".")
        if dot:
            found.setdefault(name, {})[inner] = value
        else:
            found[name] = value
    return found


def fields_of(resource: msgspec.Struct, fields: Iterable[str]) -> Fields:
    """What a resource has of the fields that can be set."""
    names = [name for name in fields if name in resource.__struct_fields__]
    nested = [name for name in names if isinstance(getattr(resource, name), msgspec.Struct)]
    return flat(plain(resource), names, nested)


def plain(value: Any) -> Any:
    """A value as JSON has it: what is compared must not differ by being a tuple or a list."""
    return msgspec.json.decode(msgspec.json.encode(value))


def whole_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """A split as the platform shows it: in whole hash slots. Raises InvalidInput for what is no split."""
    counts = slot_counts({int(version): percent for version, percent in weights.items()})
    total = sum(counts.values())
    return {str(version): round(count * 100 / total, 4) for version, count in sorted(counts.items())}


# ------------------------------------------------------------------------------------------------ of resources
def of_tenant(tenant: r.Tenant) -> State:
    """A tenant."""
    return {Key("tenant", "", tenant.name): fields_of(tenant, TENANT)}


def of_model(model: r.Model) -> State:
    """A model, its grants and aliases."""
    name = f"{model.tenant}/{model.name}"
    found: State = {Key("model", name): fields_of(model, MODEL)}
    found |= {Key("grant", name, to): {} for to in model.grants}
    return found | {Key("alias", name, alias): {"version": at} for alias, at in model.aliases.items()}


def of_version(version: r.Version) -> State:
    """A version, and its state beside it: that may change, the version never does."""
    name, number = f"{version.tenant}/{version.model}", str(version.version)
    return {
        Key("version", name, number): fields_of(version, VERSION),
        Key("state", name, number): {"state": version.state},
    }


def of_deployment(deployment: r.Deployment) -> State:
    """A deployment."""
    key = Key("deployment", f"{deployment.tenant}/{deployment.model}", str(deployment.version))
    return {key: {**fields_of(deployment, DEPLOYMENT), WAITING: deployment.traffic_on_ready}}


def of_traffic(traffic: r.Traffic) -> State:
    """A model's traffic, where it has some, and its overrides."""
    name = f"{traffic.tenant}/{traffic.model}"
    found: State = {Key("override", name, to): {"version": at} for to, at in traffic.overrides.items()}
    return found | ({Key("traffic", name): {"weights": traffic.weights}} if traffic.weights else {})


def projected(weights: Mapping[str, float], waiting: Iterable[tuple[int, float]]) -> dict[str, float]:
    """The split once the (version, percent) that wait have been taken, one after the other.

    Args:
        weights: version -> percent, now.
        waiting: what deployments take once ready, in the order of their versions.
    """
    split = {int(version): percent for version, percent in weights.items()}
    for version, percent in waiting:
        if split or percent:  # a first policy must give somebody something
            split = {v: p for v, p in with_share(split, version, percent).items() if p}
    return {str(version): round(percent, 4) for version, percent in sorted(split.items())}


def live(
    tenants: Iterable[r.Tenant],
    models: Iterable[r.Model],
    versions: Iterable[r.Version],
    deployments: Iterable[r.Deployment],
    policies: Iterable[r.Traffic],
) -> Live:
    """The platform, of all that it lists."""
    state: State = {}
    waiting: dict[str, list[tuple[int, float]]] = {}
    for tenant in tenants:
        state |= of_tenant(tenant)
    for model in models:
        state |= of_model(model)
    for version in versions:
        state |= of_version(version)
    for one in sorted(deployments, key=lambda one: one.version):
        state |= of_deployment(one)
        if one.traffic_on_ready is not None:
            waiting.setdefault(f"{one.tenant}/{one.model}", []).append((one.version, one.traffic_on_ready))
    split, kept = {}, set()
    for policy in policies:
        state |= of_traffic(policy)
        name = f"{policy.tenant}/{policy.model}"
        split[name] = projected(policy.weights, waiting.get(name, ()))
        kept |= {Key("deployment", name, version) for version in policy.previous or ()}
    return Live(state, {name: weights for name, weights in split.items() if weights}, frozenset(kept & state.keys()))


def parent_of(model: str, text: str) -> Key:
    """The version that ``3`` or ``base@3`` names, from a version of `model`. Raises InvalidInput."""
    tenant, _, name = model.partition("/")
    reference = parse_reference(text if "@" in text else f"{name}@{text}", "lineage.parent")
    return Key("version", f"{tenant}/{reference.model}", str(reference.version))
