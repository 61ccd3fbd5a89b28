"""Where replicas may run: what every fleet says of its machines, in the same words, and what the hardware costs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

PROCESSORS = "cpu"
"""The tier of a node's processors."""


class Device(msgspec.Struct, frozen=True):
    """A node's processors together, or one accelerator of it."""

    id: str
    """Unique in the fleet: ``NODE/cpu``, ``NODE/gpu0``."""
    node: str
    tier: str
    """Kind of hardware, as prices and deployments name it: ``cpu``, ``t4``, ``l40``, ``a100``."""
    memory_mb: int
    """That replicas may take together."""
    compute: float
    """Cores of processors; 1 for an accelerator, which replicas may share in fractions."""
    spot: bool = False
    """The provider may take it away at short notice."""


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of hardware, as the setting `tiers` tells of it."""

    price_per_h: float = 0.0
    """Of one accelerator, or of one core, in whatever currency all tiers have."""
    speed: float = 1.0
    """Compute of one accelerator, with a T4 for 1; of one core likewise, with a core for 1."""
    spot_price_per_h: float | None = None
    """Of a spot device; `SPOT_SHARE` of the price when left out."""


SPOT_SHARE = 0.35
TIERS = {
    "cpu": Tier(0.04),
    "t4": Tier(0.35),
    "l40": Tier(1.0, 3.5),
    "a100": Tier(2.0, 6.0),
}
"""Assumptions, not offers: see docs/placement.md."""


def tier_of(device: Device, tiers: Mapping[str, Tier]) -> Tier:
    """What is known of a device's kind of hardware; nothing, and no price, of one that the settings do not name."""
    return tiers.get(device.tier, Tier())


def price_per_h(device: Device, tiers: Mapping[str, Tier]) -> float:
    """Of the whole device."""
    tier = tier_of(device, tiers)
    if not device.spot:
        return tier.price_per_h * device.compute
    each = tier.price_per_h * SPOT_SHARE if tier.spot_price_per_h is None else tier.spot_price_per_h
    return each * device.compute
