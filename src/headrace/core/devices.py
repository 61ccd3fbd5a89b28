"""Where replicas may run: what every fleet says of its machines, in the same words."""

from __future__ import annotations

import msgspec


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
