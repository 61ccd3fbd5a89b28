"""The routing decision: one pure function over the snapshot, compiled once per model.

A request's unit (user, session; else the request itself) is hashed with the model's immutable salt by keyed blake2b.
The hash falls into one of `SLOTS` slots; the policy's split names the version that owns the slot. Because the salt
never changes and ramps only move the slots they must, a unit stays with its version until its own slot is moved.
Overrides come before any hashing.

Hashes compare as big-endian bytes: no integer is made on the request path.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from headrace.core.snapshot import SLOTS, Slots

Arm = TypeVar("Arm")
Decide = Callable[[int, bytes], Arm]
"""(tenant index, unit) -> arm."""


def compile_policy(
    split: Sequence[Slots], arms: Mapping[int, Arm], overrides: Mapping[int, int], salt: bytes
) -> Decide[Arm | None]:
    """Compile a model's policy.

    Args:
        split: ranges of hash slots in order, the last ending at `SLOTS`.
        arms: version -> what the decision returns for it.
        overrides: tenant index -> version.
        salt: key of the hash, at most 64 bytes.

    Returns:
        (tenant, unit) -> arm, or None where the policy names a version that `arms` does not hold.
    """
    if not split:
        return lambda tenant, unit: None
    pinned = {tenant: arms.get(version) for tenant, version in overrides.items()}
    versions = [arms.get(part.version) for part in split]
    if len({part.version for part in split}) == 1:
        only = versions[0]
        if not pinned:
            return lambda tenant, unit: only
        return lambda tenant, unit: pinned.get(tenant, only)
    edges = [edge_of(part.end) for part in split[:-1]]
    copy = hashlib.blake2b(key=salt, digest_size=8).copy

    def decide(tenant: int, unit: bytes) -> Arm | None:
        if pinned and tenant in pinned:
            return pinned[tenant]
        hashed = copy()
        hashed.update(unit)
        return versions[bisect_right(edges, hashed.digest())]

    return decide


def edge_of(slot: int) -> bytes:
    """The smallest 8-byte hash that falls into `slot` or above it."""
    return (-(-slot * (1 << 64) // SLOTS)).to_bytes(8, "big")


def slot_of(salt: bytes, unit: bytes) -> int:
    """The hash slot of a unit, 0 to `SLOTS` - 1: what `compile_policy` decides by, for people and tests."""
    digest = hashlib.blake2b(unit, key=salt, digest_size=8).digest()
    return int.from_bytes(digest, "big") * SLOTS >> 64
