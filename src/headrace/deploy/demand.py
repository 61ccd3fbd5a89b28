"""What a replica takes of a device. Pure.

Memory: its limit (`memory_mb`) where it has one, for that may be taken any time. Else what it is measured to have
resident; a replica that has not reported yet counts as the largest of its deployment, and the first of a deployment
as `BASE_MB` and `SIZE_FACTOR` times its artifacts; on an accelerator, whose memory nobody measures, always so.

Compute: what was reserved for it (`compute`). Without a reservation nothing of processors, which share themselves out
among whoever runs, and of an accelerator as large a part as of its memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headrace.core.devices import PROCESSORS
from headrace.core.specs import ReplicaSpec, ReplicaStatus, ServedVersion
from headrace.deploy.placement import Demand
from headrace.deploy.reconcile import Target, target_of

BASE_MB = 96
"""Of a replica without its model."""
SIZE_FACTOR = 1.5
"""Memory of a loaded model for its artifact's size."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a deployment wants to be placed."""

    tiers: tuple[str, ...] = ()
    """Any of them; none: processors."""
    spot: bool = False
    replicas: int = 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """The tiers, where none were named too."""
        return self.tiers or (PROCESSORS,)


ANYWHERE = Terms()
"""On processors, one replica."""


def estimate_mb(versions: Iterable[ServedVersion]) -> float:
    """Memory of a replica of which nothing is measured."""
    size = sum(v.size_bytes + sum(part.size_bytes for part in v.parts) for v in versions)
    return BASE_MB + SIZE_FACTOR * size / (1 << 20)


def largest_mb(statuses: Iterable[ReplicaStatus], resident_mb: Mapping[str, float]) -> dict[Target, float]:
    """Most that a replica of each deployment has resident."""
    found: dict[Target, float] = {}
    for status in statuses:
        if status.spec.id in resident_mb:
            target = target_of(status)
            found[target] = max(found.get(target, 0.0), resident_mb[status.spec.id])
    return found


def demand_of(spec: ReplicaSpec, target: Target, terms: Terms, measured_mb: float | None) -> Demand:
    """What a replica takes, running or to be started.

    Args:
        spec: of the replica.
        target: what it serves.
        terms: of its deployment.
        measured_mb: what it, or another of its deployment, has resident.
    """
    memory_mb: float
    if spec.memory_mb is not None:
        memory_mb = spec.memory_mb
    elif measured_mb is not None and terms.kinds == (PROCESSORS,):
        memory_mb = measured_mb
    else:
        memory_mb = estimate_mb(spec.versions)
    return Demand(target, memory_mb, spec.compute, terms.kinds, terms.spot, terms.replicas)
