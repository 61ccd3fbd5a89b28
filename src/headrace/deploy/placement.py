"""Which device a replica goes to: greedy, online. Pure.

A device takes replicas up to 90 % of its memory and 80 % of its compute. Replicas of one deployment go to distinct
devices: two share one only where the deployment wants more replicas than there are devices that could ever take one.
That is a rule, and the replica waits where it cannot be kept. Distinct nodes are preferred: the second replica goes to
another node wherever one has room, the others as it fits. Among the devices left come those that are not much dearer
than the cheapest for what they give; of them one that is in use already (best fit over both dimensions), then the
cheapest, so that devices stay empty, which can then be given back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.core.devices import PROCESSORS, Device, Tier, price_per_h, tier_of

MEMORY_SHARE = 0.9
COMPUTE_SHARE = 0.8
"""Of a device, that replicas may take."""
SLACK = 1e-6
"""What sums of floats may be off by."""
DEARER = 1.1
"""How much more a device in use may cost, for what it gives, than the cheapest: above it, it is left to those who need
just that kind, and spot devices go first to those who may use them."""
CROWD = 0.05
"""Share of a device that may be wasted for one replica of the group less on its node."""
NEAREST = 3
"""Devices of which it is told what they lack."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a replica takes, and where it may run."""

    group: Hashable
    """Replicas of one group go to distinct devices."""
    memory_mb: float
    compute: float | None = None
    """Cores, or accelerators with a T4 for 1. None: nothing of processors, which unreserved replicas share; of an
    accelerator as large a part of what may be taken as of its memory."""
    tiers: tuple[str, ...] = (PROCESSORS,)
    """Any of them will do."""
    spot: bool = False
    """It may run on devices that the provider may take away."""
    replicas: int = 1
    """That the group wants."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a replica goes, and why; or why nowhere."""

    device: Device | None
    reason: str


class Packing:
    """Devices and what is on them.

    Args:
        devices: of the fleet, in any order.
        tiers: prices and speeds by name.
    """

    def __init__(self, devices: Sequence[Device], tiers: Mapping[str, Tier]) -> None:
        self.devices = tuple(sorted(devices, key=lambda d: d.id))
        self.index = {device.id: k for k, device in enumerate(self.devices)}
        count = len(self.devices)
        self.memory_mb = np.array([d.memory_mb * MEMORY_SHARE for d in self.devices], float)
        """What each takes in all; `compute` likewise."""
        self.compute = np.array([d.compute * tier_of(d, tiers).speed * COMPUTE_SHARE for d in self.devices], float)
        self.price_per_h = np.array([price_per_h(d, tiers) for d in self.devices], float)
        self.memory_used_mb = np.zeros(count)
        self.compute_used = np.zeros(count)
        self.replicas = np.zeros(count, int)
        self._accelerators = np.array([d.tier != PROCESSORS for d in self.devices], bool)
        self._nodes = np.unique([d.node for d in self.devices], return_inverse=True)[1] if count else np.zeros(0, int)
        self._memory_total_mb = self._compute_total = 0.0
        """In use on all."""
        self._groups: dict[Hashable, dict[int, int]] = {}
        """Group -> device -> replicas there."""
        self._allowed: dict[tuple[tuple[str, ...], bool], NDArray[np.bool_]] = {}
        # Nothing is divided by zero: a device without compute takes what asks for none.
        self._per_memory = 1 / np.maximum(self.memory_mb, SLACK)
        self._per_compute = 1 / np.maximum(self.compute, SLACK)
        self._ratio = np.where(self._accelerators, self.compute * self._per_memory, 0.0)

    @property
    def price_in_use_per_h(self) -> float:
        """Of the devices that have replicas."""
        return float(self.price_per_h[self.replicas > 0].sum())

    def compute_of(self, demand: Demand) -> NDArray[np.float64]:
        """What a replica takes of each device's compute."""
        if demand.compute is None:
            return self._ratio * demand.memory_mb
        return np.full(len(self.devices), demand.compute)

    def allowed(self, demand: Demand) -> NDArray[np.bool_]:
        """Devices of the right kind that are large enough, full or not."""
        key = (demand.tiers, demand.spot)
        kind = self._allowed.get(key)
        if kind is None:
            fits = [d.tier in demand.tiers and (demand.spot or not d.spot) for d in self.devices]
            kind = self._allowed[key] = np.array(fits, bool)
        large = kind & (self.memory_mb >= demand.memory_mb - SLACK)
        if demand.compute is not None:
            large &= self.compute >= demand.compute - SLACK
        return large

    def most_per_device(self, demand: Demand, allowed: int) -> int:
        """Replicas of the group that one device may have: more than one only where the devices are too few."""
        have = sum(self._groups.get(demand.group, {}).values())
        return -(-max(demand.replicas, have + 1) // max(allowed, 1))

    def room(self, demand: Demand) -> NDArray[np.bool_]:
        """Devices that can take one more replica now."""
        allowed = self.allowed(demand)
        compute = self._ratio * demand.memory_mb if demand.compute is None else demand.compute
        fits = allowed & (self.memory_used_mb <= self.memory_mb + (SLACK - demand.memory_mb))
        fits &= self.compute_used + (compute - SLACK) <= self.compute
        here = self._groups.get(demand.group)
        if here:
            most = self.most_per_device(demand, int(allowed.sum()))
            fits[[k for k, count in here.items() if count >= most]] = False
        return fits

    def place(self, demand: Demand) -> Choice:
        """Put a replica somewhere."""
        fits = self.room(demand)
        if not fits.any():
            return Choice(None, self._why_none(demand))
        candidates = np.flatnonzero(fits)
        here = self._groups.get(demand.group)
        crowd: NDArray[np.float64] | None = None
        if here:
            nodes = self._nodes[list(here)]
            crowd = np.bincount(nodes, list(here.values()), int(self._nodes.max()) + 1)[self._nodes].astype(float)
            elsewhere = candidates[crowd[candidates] == 0]
            if elsewhere.size and (nodes == nodes[0]).all():
                candidates = elsewhere  # the loss of one node shall not take all of them
        price = self._price_of(demand, candidates)
        cheap = candidates[price <= price.min() * DEARER]
        used = cheap[self.replicas[cheap] > 0]
        if used.size:
            waste = self._waste(demand, used)
            best = used[np.argmin(waste if crowd is None else waste + CROWD * crowd[used])]
        else:
            best = candidates[np.argmin(price)]
        was_used = self.replicas[best] > 0
        self.take(self.devices[best].id, demand)
        return Choice(self.devices[best], self._why(int(best), bool(was_used)))

    def place_all(self, demands: Sequence[Demand]) -> list[Choice]:
        """Place many at once, the largest first; the answers in the order of `demands`."""
        memory, compute = self.memory_mb.max(initial=SLACK), self.compute.max(initial=SLACK)
        sizes = [max(d.memory_mb / memory, (d.compute or 0.0) / max(compute, SLACK)) for d in demands]
        choices: dict[int, Choice] = {}
        for k in sorted(range(len(demands)), key=lambda k: (-sizes[k], k)):
            choices[k] = self.place(demands[k])
        return [choices[k] for k in range(len(demands))]

    def take(self, device: str, demand: Demand, replicas: int = 1) -> None:
        """Count a replica to a device, whether it has room or not; -1: one less. A device that is gone counts
        nothing."""
        k = self.index.get(device)
        if k is None:
            return
        self.memory_used_mb[k] += demand.memory_mb * replicas
        compute = self._ratio[k] * demand.memory_mb if demand.compute is None else demand.compute
        self.compute_used[k] += compute * replicas
        self._memory_total_mb += demand.memory_mb * replicas
        self._compute_total += compute * replicas
        self.replicas[k] += replicas
        group = self._groups.setdefault(demand.group, {})
        group[k] = group.get(k, 0) + replicas
        if not group[k]:
            del group[k]

    def _takes(self, demand: Demand, at: NDArray[np.intp]) -> NDArray[np.float64] | float:
        """What a replica takes of the compute of some devices."""
        return self._ratio[at] * demand.memory_mb if demand.compute is None else demand.compute

    def _waste(self, demand: Demand, at: NDArray[np.intp]) -> NDArray[np.float64]:
        """What would be left over of a device's memory and compute, as shares."""
        memory_left = (self.memory_mb[at] - self.memory_used_mb[at] - demand.memory_mb) * self._per_memory[at]
        compute_left = (self.compute[at] - self.compute_used[at] - self._takes(demand, at)) * self._per_compute[at]
        left: NDArray[np.float64] = memory_left + compute_left
        return left

    def _price_of(self, demand: Demand, at: NDArray[np.intp]) -> NDArray[np.float64]:
        """What a replica's part of each device costs, memory and compute weighed by how scarce they are: by how much
        of each is in use in all, for what this device has."""
        memory = self.memory_mb[at] / (self._memory_total_mb + demand.memory_mb + SLACK)
        compute_ = self.compute[at] / (self._compute_total + self._takes(demand, at) + SLACK)
        price: NDArray[np.float64] = self.price_per_h[at] / (memory + compute_)
        return price

    def _why(self, k: int, was_used: bool) -> str:
        device = self.devices[k]
        left = gib(self.memory_mb[k] - self.memory_used_mb[k])
        how = "in use already, the best fit" if was_used else "empty, the cheapest for what it gives"
        return f"{device.id} ({device.tier}, {self.price_per_h[k]:.2f}/h): {how}; {left} stay free"

    def _why_none(self, demand: Demand) -> str:
        tiers = " or ".join(demand.tiers)
        kind = [k for k, d in enumerate(self.devices) if d.tier in demand.tiers]
        if not kind:
            have = ", ".join(sorted({d.tier for d in self.devices})) or "no devices"
            return f"no device of tier {tiers}: the fleet has {have}"
        if not demand.spot and all(self.devices[k].spot for k in kind):
            return f"all devices of tier {tiers} are spot, which the deployment does not allow"
        asked = gib(demand.memory_mb)
        asked += f" and compute of {demand.compute:g}" if demand.compute else ""
        allowed = np.flatnonzero(self.allowed(demand))
        if not allowed.size:
            largest = max(kind, key=lambda k: self.memory_mb[k])
            most = f"{gib(self.memory_mb[largest])} and compute of {self.compute[largest]:g}"
            return f"no device of tier {tiers} is large enough for {asked}: {self.devices[largest].id} gives {most}"
        room = self.memory_mb[allowed] - self.memory_used_mb[allowed]
        nearest = allowed[np.argsort(-room, kind="stable")[:NEAREST]]
        told = "; ".join(f"{self.devices[k].id} {self._lacks(int(k), demand)}" for k in nearest)
        rest = f"; {allowed.size - NEAREST} more" if allowed.size > NEAREST else ""
        return f"no device of tier {tiers} has {asked} free: {told}{rest}"

    def _lacks(self, k: int, demand: Demand) -> str:
        memory_mb = self.memory_mb[k] - self.memory_used_mb[k]
        compute = self.compute[k] - self.compute_used[k]
        if memory_mb + SLACK < demand.memory_mb:
            return f"has {gib(memory_mb)}"
        if compute + SLACK < self.compute_of(demand)[k]:
            return f"has compute of {max(compute, 0.0):.3g}"
        return "has a replica of it"


def gib(memory_mb: float) -> str:
    """``1.5 GiB``, of MiB."""
    return f"{max(memory_mb, 0.0) / 1024:.1f} GiB"


def packed(devices: Sequence[Device], tiers: Mapping[str, Tier], placed: Iterable[tuple[str, Demand]]) -> Packing:
    """A packing with what runs already: (device, demand) of each replica."""
    packing = Packing(devices, tiers)
    for device, demand in placed:
        packing.take(device, demand)
    return packing
