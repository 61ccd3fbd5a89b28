"""What the API's use cases need of the running platform, so that they can be served without one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from headrace.core.resources import DeviceStatus, FleetStatus, ModelStatus, PackStatus, PlacementPlan, RouterStatus
from headrace.core.specs import ReplicaStatus


@dataclass(frozen=True, slots=True)
class Effect:
    """How far a published snapshot has come: whether every live router serves by it, and after how long."""

    epoch: int
    effective: bool
    milliseconds: float


class Routing(Protocol):
    """Carries committed state to the routers."""

    async def publish(self) -> Effect:
        """Read the store, send what changed, wait (bounded) until all live routers serve by it."""


class Fleet(Protocol):
    """The replicas as they are."""

    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """Every replica known, in any state."""

    def devices(self) -> list[DeviceStatus]:
        """Where they may be, and what is there."""

    def placement(self) -> PlacementPlan:
        """What the background optimiser found last."""

    def summary(self) -> FleetStatus:
        """What runs them."""

    def wake(self) -> None:
        """Desired state has changed: reconcile now rather than at the next tick."""


class Telemetry(Protocol):
    """What the routers and replicas report."""

    def routers(self) -> list[RouterStatus]:
        """Router processes, connected or lately so."""

    def residents(self) -> Collection[tuple[str, int]]:
        """Versions (``tenant/name``, number) that are in the memory of a shared process."""

    def packs(self) -> list[PackStatus]:
        """The shared processes."""

    def models(self) -> dict[str, ModelStatus]:
        """``tenant/name`` -> its last 10 seconds (`serving` and `ready_replicas` are filled by the caller)."""

    def prometheus(self) -> bytes:
        """The exposition text of /metrics."""
