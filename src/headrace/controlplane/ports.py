"""What the API's use cases need of the running platform, so that they can be served without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from headrace.core.resources import FleetStatus, ModelStatus, RouterStatus
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

    def summary(self) -> FleetStatus:
        """What runs them."""

    def wake(self) -> None:
        """Desired state has changed: reconcile now rather than at the next tick."""


class Telemetry(Protocol):
    """What the routers and replicas report."""

    def routers(self) -> list[RouterStatus]:
        """Router processes, connected or lately so."""

    def models(self) -> dict[str, ModelStatus]:
        """``tenant/name`` -> its last 10 seconds (`serving` and `ready_replicas` are filled by the caller)."""

    def prometheus(self) -> bytes:
        """The exposition text of /metrics."""
