"""Which shared processes serve which versions, and what to change in their catalogs. Pure.

A version is in the catalogs of two packs, where there are two: the first serves it, the second is there for when the
first is not, and holds it in memory only then. Which they are follows from the version's name alone (rendezvous
hashing), so that every control plane says the same, and that one more pack moves few versions.

Nothing leaves a catalog before what takes its place is ready: not the entry of an earlier revision, not the version
that is to get replicas of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

from headrace.core.snapshot import Endpoint
from headrace.core.specs import CatalogEntry, CatalogKey, ReplicaStatus
from headrace.deploy.reconcile import Standing, Target

COPIES = 2


@lru_cache(1 << 16)
def rank(target: Target, number: int) -> bytes:
    """A version is served by the packs in which its rank is least."""
    return blake2b(f"{number}/{target[0]}@{target[1]}".encode(), digest_size=8).digest()


@lru_cache(1 << 16)
def packs_of(target: Target, count: int) -> tuple[int, ...]:
    """Numbers of the packs of a version, the first one first."""
    return tuple(sorted(range(count), key=lambda number: rank(target, number))[:COPIES])


@dataclass(frozen=True, slots=True)
class Orders:
    """What is to be changed in one pack's catalog."""

    add: list[Target] = field(default_factory=list)
    remove: list[CatalogEntry] = field(default_factory=list)


def plan(
    wanted: Mapping[Target, int], kept: Collection[Target], packs: Sequence[ReplicaStatus], count: int
) -> dict[str, Orders]:
    """What to change, by the id of the pack.

    Args:
        wanted: versions that packs shall serve -> revision.
        kept: versions that they serve until something else does.
        packs: those that are ready.
        count: how many packs there are to be.
    """
    places: dict[int, list[Target]] = {}
    for target in wanted:
        for number in packs_of(target, count):
            places.setdefault(number, []).append(target)
    found = {}
    for pack in packs:
        assert pack.spec.pack is not None
        here = places.get(pack.spec.pack.number, [])
        mine = set(here)
        by_key = {entry.key: entry for entry in pack.catalog}
        orders = Orders([target for target in here if (*target, wanted[target]) not in by_key])
        for entry in pack.catalog:
            target = entry.model, entry.version
            if target in mine:
                successor = by_key.get((*target, wanted[target]))
                if entry.revision != wanted[target] and successor is not None and successor.state == "ready":
                    orders.remove.append(entry)
            elif target not in kept:
                orders.remove.append(entry)
        if orders.add or orders.remove:
            found[pack.spec.id] = orders
    return found


def serving(
    packs: Iterable[ReplicaStatus], leaving: Collection[tuple[str, CatalogKey]]
) -> Iterator[tuple[ReplicaStatus, CatalogEntry]]:
    """Each version that is ready in a pack that is, and is not about to leave it; of several revisions the latest."""
    for pack in packs:
        latest: dict[Target, CatalogEntry] = {}
        for entry in pack.catalog:
            target = entry.model, entry.version
            here = entry.state == "ready" and (pack.spec.id, entry.key) not in leaving
            if here and (target not in latest or latest[target].revision < entry.revision):
                latest[target] = entry
        for entry in latest.values():
            yield pack, entry


def endpoints(target: Target, where: Sequence[tuple[int, Endpoint]], dedicated: bool) -> list[Endpoint]:
    """Where routers find a version, by the numbers of its packs: one pack serves it, so that the others need not hold
    it in memory; none does where it has replicas of its own."""
    ranked = sorted(where, key=lambda pair: rank(target, pair[0]))
    return [Endpoint(e.replica, e.slot, dedicated or k > 0) for k, (_, e) in enumerate(ranked)]


def standing(revision: int, entries: Sequence[CatalogEntry], dedicated: Standing | None) -> Standing:
    """A shared deployment as it is.

    Args:
        revision: of the deployment.
        entries: of its version, in all packs that are ready.
        dedicated: of replicas that it has had until now; None: it has none.
    """
    ready = sum(entry.state == "ready" for entry in entries)
    mine = [entry for entry in entries if entry.revision == revision]
    troubles = [entry.detail for entry in mine if entry.detail]
    detail = troubles[0] if troubles else ""
    failed = next((entry for entry in mine if entry.state == "failed"), None)
    if any(entry.state == "ready" and entry.revision == revision for entry in mine):
        return Standing("ready", ready, detail)
    if dedicated is not None and dedicated.ready:
        why = f"stays in its own replicas: {failed.detail}" if failed else "is being loaded into the shared processes"
        return Standing("ready", dedicated.ready, why)
    if failed is not None:
        return Standing("failed", ready, failed.detail, revision)
    if ready:
        return Standing("ready", ready, "a change of it is being loaded")
    if mine:
        return Standing("starting", 0, detail or mine[0].state)
    return Standing("requested", 0, "waits for a shared process")
