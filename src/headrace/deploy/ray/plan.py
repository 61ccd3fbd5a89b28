"""What Ray is asked for a replica, and what its table of nodes says of devices. Pure.

A node tells its kind of hardware by labels: ``headrace.tier`` (else Ray's own ``ray.io/accelerator-type``),
``headrace.spot`` (else ``ray.io/market-type``), and ``headrace.gpu-memory-mb`` where Ray's name of the accelerator does
not tell it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from headrace.core.devices import Device
from headrace.core.specs import ReplicaSpec

TIER = "headrace.tier"
SPOT = "headrace.spot"
GPU_MEMORY = "headrace.gpu-memory-mb"
NODE_ID = 12
"""Characters of Ray's node id that name a node in a device's id."""
GPU_MEMORY_MB = {
    "T4": 16 << 10,
    "L4": 24 << 10,
    "A10G": 24 << 10,
    "L40S": 48 << 10,
    "V100": 16 << 10,
    "A100-40G": 40 << 10,
    "A100-80G": 80 << 10,
    "H100": 80 << 10,
    "H200": 141 << 10,
}
"""MiB of accelerators by Ray's name of them."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster as Ray's table has it."""

    id: str
    alive: bool
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """What a replica's actor is created with."""

    cpus: float
    gpus: float = 0.0
    memory_bytes: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    node: str | None = None
    """Ray's id of the only node that will do."""

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU"]
        parts += [f"{self.gpus:g} GPU"] if self.gpus else []
        parts += [f"{self.memory_bytes >> 20} MiB"] if self.memory_bytes else []
        parts += [f"{name}={value}" for name, value in self.labels.items()]
        parts += [f"node {self.node[:NODE_ID]}"] if self.node else []
        return ", ".join(parts)


def ask(spec: ReplicaSpec, nodes: Iterable[Node]) -> Ask | None:
    """What to ask of Ray; None where the node that it was placed on is not there.

    A replica's threads are its processors, its memory limit is its memory. One that was placed has its room counted
    already: of Ray it wants its accelerator, and the node.
    """
    gpus = spec.accelerators
    memory = spec.memory_mb << 20 if spec.memory_mb is not None else None
    labels = {TIER: spec.tier} if spec.tier else {}
    if not spec.spot:
        labels[SPOT] = "!true"
    if not spec.device:
        return Ask(spec.threads, gpus, memory, labels)
    wanted, _, _ = spec.device.partition("/")
    node = next((node.id for node in nodes if node.alive and node.id.startswith(wanted)), None)
    return None if node is None else Ask(0.0, gpus, None, {}, node)


def devices(nodes: Iterable[Node]) -> list[Device]:
    """The devices of the nodes that live."""
    found = []
    for node in nodes:
        if node.alive:
            found += _devices(node)
    return found


def _devices(node: Node) -> list[Device]:
    name = node.id[:NODE_ID]
    kind = node.labels.get("ray.io/accelerator-type", "")
    spot = node.labels.get(SPOT, node.labels.get("ray.io/market-type", "")) in ("true", "spot")
    gpus = int(node.resources.get("GPU", 0))
    tier = node.labels.get(TIER, kind.lower())
    memory_mb = int(node.resources.get("memory", 0)) >> 20
    cores = node.resources.get("CPU", 0.0)
    found = [Device(f"{name}/cpu", name, (not gpus and tier) or "cpu", memory_mb, cores, spot)] if cores else []
    given = node.labels.get(GPU_MEMORY, "")
    gpu_mb = int(given) if given.isdigit() else GPU_MEMORY_MB.get(kind, 0)
    found += [Device(f"{name}/gpu{k}", name, tier or "gpu", gpu_mb, 1.0, spot) for k in range(gpus)]
    return found
