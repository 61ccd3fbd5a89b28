"""What the store says of routing and deployments, read in a few queries: the input of snapshot and reconciliation."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from headrace.controlplane import accounts
from headrace.deploy import store as deploy_store
from headrace.deploy.store import Desired
from headrace.registry import store as registry_store
from headrace.registry.store import ModelRow, VersionRow
from headrace.traffic import store as traffic_store
from headrace.traffic.store import Policy


@dataclass(frozen=True, slots=True)
class RoutingState:
    """The store at one moment. Models and deployments are keyed by the model's id."""

    tenants: dict[int, accounts.TenantRow]
    keys: list[accounts.KeyRow]
    models: dict[int, ModelRow]
    grants: dict[int, list[int]]
    policies: dict[int, tuple[Policy, Policy | None]]
    overrides: dict[int, dict[int, int]]
    desired: list[Desired]
    versions: dict[tuple[int, int], VersionRow]
    """Of the deployments only."""

    def id_of(self, model: int) -> str:
        """``tenant/name``."""
        row = self.models[model]
        return f"{self.tenants[row.tenant].name}/{row.name}"


class Reader:
    """Reads the state; versions never change, so each is read once."""

    def __init__(self) -> None:
        self._versions: dict[tuple[int, int], VersionRow] = {}

    def __call__(self, connection: Connection) -> RoutingState:
        """The state in this transaction."""
        desired = deploy_store.list_all(connection)
        wanted = {(one.model, one.version) for one in desired}
        self._versions |= registry_store.find_versions(connection, wanted - self._versions.keys())
        return RoutingState(
            {tenant.index: tenant for tenant in accounts.list_tenants(connection)},
            [key for key in accounts.list_keys(connection) if key.state == "active"],
            {model.id: model for model in registry_store.list_models(connection)},
            registry_store.list_grants(connection),
            traffic_store.list_current(connection),
            traffic_store.list_overrides(connection),
            desired,
            {key: self._versions[key] for key in wanted},
        )
