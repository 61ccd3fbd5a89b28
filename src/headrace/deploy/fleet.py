"""The fleet port: whatever runs replicas."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Protocol

from headrace.core.devices import Device
from headrace.core.specs import CatalogOrder, ReplicaSpec, ReplicaStatus


class Fleet(Protocol):
    """Runs processes for the deployment manager. State lives with the fleet: a new control plane finds what runs."""

    @property
    def routers(self) -> list[str]:
        """Ids of the routers that run."""

    @property
    def holding(self) -> str:
        """Why nothing can be started or stopped now, for people; empty where it can."""

    async def start(self, spec: ReplicaSpec) -> None:
        """Start a replica; a second start of the same id changes nothing."""

    async def stop(self, replica: str) -> None:
        """Drain and stop a replica; unknown ids are no error."""

    async def forget(self, replica: str) -> None:
        """Drop the record of a replica that has ended."""

    async def catalog(self, pack: str, order: CatalogOrder) -> None:
        """Change what a pack serves. An item that it has already, one to remove that it does not have, and a pack that
        is unknown change nothing."""

    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """All replicas, oldest first, as last heard."""

    def devices(self) -> tuple[Device, ...]:
        """Where replicas may run, as last heard; `ReplicaSpec.device` names one of them."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever `statuses` differs."""


def replica_id(model: str, version: int) -> str:
    """A new replica's id, which says what it serves; short, for its end names a socket."""
    return f"{model.rpartition('/')[2][:24]}-{version}-{secrets.token_hex(3)}"
