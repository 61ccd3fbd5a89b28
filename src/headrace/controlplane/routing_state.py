"""What the store says of routing and deployments: the input of snapshot and reconciliation, read in steps.

`read` takes the state before and reads again what has changed since (`core.revisions`), so that its time goes with the
changes and not with the number of models. States are never altered: whoever holds one may go on with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection

from headrace.controlplane import accounts, quarantine_store
from headrace.controlplane.accounts import KeyRow, TenantRow
from headrace.core import revisions
from headrace.core.database import KEYS_MAX
from headrace.core.revisions import Kind
from headrace.core.snapshot import Quarantined
from headrace.deploy import store as deploy_store
from headrace.deploy.store import Desired
from headrace.registry import parts as parts_store
from headrace.registry import store as registry_store
from headrace.registry.parts import Part
from headrace.registry.store import ModelRow, VersionRow
from headrace.traffic import store as traffic_store
from headrace.traffic.store import NONE, Policy

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelState:
    """All that routing and deployment need of a model."""

    row: ModelRow
    id: str
    """``tenant/name``."""
    grants: tuple[int, ...]
    policy: Policy
    back: Policy | None
    """What a rollback would put in place."""
    pins: dict[int, int]
    """Tenant index -> version."""
    deployments: tuple[Desired, ...]
    """By version."""
    versions: dict[int, VersionRow]
    """Of the deployments."""
    parts: dict[int, tuple[Part, ...]] = field(default_factory=dict)
    """Version that is a pipeline -> what it runs."""
    quarantined: dict[int, tuple[Quarantined, ...]] = field(default_factory=dict)
    """Version -> inputs that are refused."""


@dataclass(frozen=True, slots=True)
class RoutingState:
    """The store at one moment."""

    revision: int = 0
    """Of the latest change that is in it."""
    revisions: dict[tuple[Kind, str], int] = field(default_factory=dict)
    """Everything's revision, the latest changes last."""
    tenants: dict[int, TenantRow] = field(default_factory=dict)
    keys: dict[str, KeyRow] = field(default_factory=dict)
    """The active ones."""
    models: dict[int, ModelState] = field(default_factory=dict)

    def changed_since(self, revision: int) -> dict[Kind, list[str]]:
        """Ids of what has changed after `revision`."""
        found: dict[Kind, list[str]] = {"tenant": [], "key": [], "model": []}
        for (kind, id_), at in reversed(self.revisions.items()):
            if at <= revision:
                break
            found[kind].append(id_)
        return found


NOTHING = RoutingState()


def read(connection: Connection, before: RoutingState = NOTHING) -> RoutingState:
    """The state in this transaction: `before` and what has changed since. `before` itself where nothing has."""
    touched = revisions.since(connection, before.revision)
    if not touched:
        return before
    moved = dict(before.revisions)
    for one in touched:
        moved.pop((one.kind, one.id), None)  # it goes to the end
        moved[one.kind, one.id] = one.revision
    tenants, keys, models = dict(before.tenants), dict(before.keys), dict(before.models)
    for indexes in _chunks([int(one.id) for one in touched if one.kind == "tenant"]):
        tenants.update(accounts.find_tenants(connection, indexes))
    for ids in _chunks([one.id for one in touched if one.kind == "key"]):
        for id_, key in accounts.find_keys(connection, ids).items():
            keys[id_] = key
            if key.state != "active":
                del keys[id_]
    for numbers in _chunks([int(one.id) for one in touched if one.kind == "model"]):
        models.update(_models(connection, numbers, tenants, before))
    return RoutingState(touched[-1].revision, moved, tenants, keys, models)


def _models(
    connection: Connection, ids: Sequence[int], tenants: dict[int, TenantRow], before: RoutingState
) -> dict[int, ModelState]:
    rows = registry_store.find_models(connection, ids)
    grants = registry_store.list_grants(connection, ids)
    policies = traffic_store.list_current(connection, ids)
    pins = traffic_store.list_overrides(connection, ids)
    deployments: dict[int, list[Desired]] = {}
    for one in deploy_store.list_all(connection, ids):
        deployments.setdefault(one.model, []).append(one)
    # Versions never change: those that were read before are good.
    known = {(id_, n): row for id_ in ids if id_ in before.models for n, row in before.models[id_].versions.items()}
    wanted = [(one.model, one.version) for many in deployments.values() for one in many]
    known |= registry_store.find_versions(connection, [key for key in wanted if key not in known])
    parts = parts_store.of(connection, [key for key in wanted if known[key].engine == "pipeline"])
    refused: dict[int, dict[int, tuple[Quarantined, ...]]] = {}
    for bad in quarantine_store.find(connection, ids):
        of = refused.setdefault(bad.model, {})
        of[bad.version] = (*of.get(bad.version, ()), Quarantined(bytes.fromhex(bad.digest), bad.until))
    found = {}
    for id_, row in rows.items():
        policy, back = policies.get(id_, (NONE, None))
        here = tuple(deployments.get(id_, ()))
        found[id_] = ModelState(
            row,
            f"{tenants[row.tenant].name}/{row.name}",
            tuple(grants.get(id_, ())),
            policy,
            back,
            pins.get(id_, {}),
            here,
            {one.version: known[id_, one.version] for one in here},
            {one.version: parts[id_, one.version] for one in here if (id_, one.version) in parts},
            refused.get(id_, {}),
        )
    return found


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + KEYS_MAX] for start in range(0, len(items), KEYS_MAX))
