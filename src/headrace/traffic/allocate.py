"""How a traffic split becomes hash slots, moving as few of them as can be. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from headrace.core.errors import InvalidInput
from headrace.core.snapshot import SLOTS, Slots


def allocate(old: Sequence[Slots], weights: Mapping[int, float]) -> tuple[Slots, ...]:
    """The split that gives each version its share.

    Versions that shrink give up slots from their own end; versions that grow take what was freed. So the share of
    units that change version is exactly the total variation distance of the two splits, and a ramp is nested: whoever
    was moved by its first step stays moved.

    Args:
        old: the split so far; empty for a new model.
        weights: version -> percent.

    Raises:
        InvalidInput: percents that are not finite, negative, or do not add up to 100.
    """
    wanted = slot_counts(weights)
    owner: list[int | None] = []
    for part in old:
        owner += [part.version] * (part.end - len(owner))
    owner += [None] * (SLOTS - len(owner))
    have: dict[int, int] = {}
    for slot, version in enumerate(owner):
        if version is None:
            continue
        have[version] = have.get(version, 0) + 1
        if have[version] > wanted.get(version, 0):
            owner[slot] = None
            have[version] -= 1
    missing = [version for version in sorted(wanted) for _ in range(wanted[version] - have.get(version, 0))]
    takes = iter(missing)
    full = [version if version is not None else next(takes) for version in owner]
    split = []
    for slot, version in enumerate(full):
        if slot + 1 == SLOTS or full[slot + 1] != version:
            split.append(Slots(slot + 1, version))
    return tuple(split)


def slot_counts(weights: Mapping[int, float]) -> dict[int, int]:
    """Percents as whole slots that add up to `SLOTS` (largest remainders). Raises InvalidInput."""
    for version, percent in weights.items():
        if not math.isfinite(percent) or percent < 0:
            raise InvalidInput(
                f"weights.{version}: {percent} is no share, expected 0 to 100 percent", field=f"weights.{version}"
            )
    total = sum(weights.values())
    if abs(total - 100) > 1e-6:
        raise InvalidInput(f"weights: they add up to {total:g} percent, expected 100", field="weights")
    exact = {version: percent * SLOTS / 100 for version, percent in weights.items()}
    for version, value in exact.items():
        if 0 < value < 0.999:  # a share that would vanish without a word
            raise InvalidInput(
                f"weights.{version}: {weights[version]:g} percent is less than the smallest share, {100 / SLOTS:g}",
                field=f"weights.{version}",
            )
    return _whole(exact, SLOTS)


def _whole(exact: Mapping[int, float], total: int) -> dict[int, int]:
    """Whole slots that add up to `total`, as near to `exact` as can be (largest remainders); without those of none."""
    counts = {version: int(value) for version, value in exact.items()}
    by_remainder = sorted(exact, key=lambda version: (counts[version] - exact[version], version))
    for version in by_remainder[: total - sum(counts.values())]:
        counts[version] += 1
    return {version: count for version, count in counts.items() if count}


def slots_of(split: Sequence[Slots]) -> Counter[int]:
    """Version -> how many slots of a split are its."""
    counts: Counter[int] = Counter()
    start = 0
    for part in split:
        counts[part.version] += part.end - start
        start = part.end
    return counts


def weights_of(split: Sequence[Slots]) -> dict[int, float]:
    """Version -> percent of a split."""
    return {version: count * 100 / SLOTS for version, count in slots_of(split).items()}


def with_share(weights: Mapping[int, float], version: int, percent: float) -> dict[int, float]:
    """Give `version` a share; the others shrink or grow in proportion.

    In whole slots, so that `allocate` takes whatever comes out: a share above nothing is at least one slot, and another
    version whose part of what is left rounds to no slot gets none.

    Args:
        weights: version -> percent, now.
        version: who gets the share.
        percent: 0 to 100.
    """
    others = {v: w for v, w in weights.items() if v != version and w > 0}
    if not others:
        return {version: 100.0}
    given = max(round(percent * SLOTS / 100), 1 if percent > 0 else 0)
    left, total = SLOTS - given, sum(others.values())
    scaled = _whole({v: w * left / total for v, w in others.items()}, left)
    return {v: count * 100 / SLOTS for v, count in {**scaled, version: given}.items()}


def continues(start: Sequence[Slots], now: Sequence[Slots], new: Sequence[Slots]) -> bool:
    """Whether `new` is a further step of the rollout that led from `start` to `now`: both gave more to one version, the
    same, and it had nothing at the start."""
    first, second = _grown(start, now), _grown(now, new)
    return len(first) == 1 and first == second and not first & slots_of(start).keys()


def _grown(old: Sequence[Slots], new: Sequence[Slots]) -> set[int]:
    return set(slots_of(new) - slots_of(old))  # a Counter's difference keeps what is above nothing
