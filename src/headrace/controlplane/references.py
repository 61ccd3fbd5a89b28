"""What refers to a version, each with what to do about it: what is referred to is neither retired nor deleted."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from headrace.controlplane import accounts, composing
from headrace.deploy import store as deploy_store
from headrace.registry import lifecycle, lineage
from headrace.registry import parts as parts_store
from headrace.registry import store as registry
from headrace.registry.store import ModelRow
from headrace.traffic import store as traffic
from headrace.traffic.allocate import weights_of


@dataclass(frozen=True, slots=True)
class Use:
    """A reference: ``is deployed``, and how to end that."""

    what: str
    hint: str


def deployed(c: Connection, model: ModelRow, version: int) -> list[Use]:
    """What a retired version would break: its deployment, tenants pinned to it, aliases that point at it, pipelines
    that run it and are not retired themselves."""
    entity = f"{model.name}@{version}"
    found = []
    if deploy_store.find(c, model.id, version) is not None:
        found.append(Use("is deployed", f"headrace undeploy {entity}"))
    pinned = [tenant for tenant, at in traffic.list_overrides(c, [model.id]).get(model.id, {}).items() if at == version]
    for row in accounts.find_tenants(c, pinned).values():
        found.append(Use(f"has tenant {row.name!r} pinned to it", f"headrace traffic unpin {model.name} {row.name}"))
    for alias, at in lifecycle.list_aliases(c, [model.id]).get(model.id, {}).items():
        if at == version:
            hint = f"headrace models alias {model.name} {alias} VERSION"
            found.append(Use(f"is what the alias {alias!r} points at", hint))
    return found + _run_by(c, model, version, "retire")


def _run_by(c: Connection, model: ModelRow, version: int, verb: str) -> list[Use]:
    found = []
    keys = parts_store.users(c, [model.id]).get((model.id, version), [])
    names = composing.used_by(c, [model]).get((model.id, version), [])
    for (pipeline, number), name in zip(keys, names, strict=True):
        if verb == "delete" or lifecycle.find(c, pipeline, number).state != "retired":
            found.append(Use(f"is run by the pipeline {name}", f"headrace models {verb} {name}"))
    return found


def all_of(c: Connection, model: ModelRow, version: int) -> list[Use]:
    """The same, and the traffic policy, the one that a rollback would put back, versions made from it, and retired
    pipelines that run it."""
    found = deployed(c, model, version)
    back = traffic.previous(c, model.id)
    hint = f"headrace traffic set {model.name} VERSION=100"
    if version in weights_of(traffic.current(c, model.id).split):
        found.append(Use("is in the traffic policy in force", hint))
    if back is not None and version in weights_of(back.split):
        found.append(Use("is what a rollback would put back", f"{hint}, once more after the next version"))
    for child_model, child in lineage.children(c, model.id, version):
        name = registry.find_models(c, [child_model])[child_model].name
        found.append(Use(f"is the parent of {name}@{child}", f"headrace models delete {name}@{child}"))
    return found + _run_by(c, model, version, "delete")
