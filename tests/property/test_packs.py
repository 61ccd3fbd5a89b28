"""Which shared processes serve which versions, and when a version leaves them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.snapshot import Endpoint
from headrace.core.specs import CatalogEntry, EntryState, Packing, PackSpec, ReplicaSpec, ReplicaStatus
from headrace.deploy.packs import endpoints, packs_of, plan, serving, standing
from headrace.deploy.promote import Load, Move, isolate, judge
from headrace.deploy.reconcile import Standing

A, B = ("t/a", 1), ("t/b", 1)
OWN = Standing("ready", 2, "")
NONE = Standing("stopped", 0, "")


def pack(number: int, *entries: CatalogEntry) -> ReplicaStatus:
    spec = ReplicaSpec(f"shared-{number}", "unix:/x", (), pack=PackSpec(number, 128, 64))
    return ReplicaStatus(spec, "ready", catalog=entries)


def entry(target: tuple[str, int], state: EntryState = "ready", revision: int = 1, slot: int = 0) -> CatalogEntry:
    return CatalogEntry(*target, revision, slot, state, "it broke" if state == "failed" else "", 1000)


@given(st.text("abc", min_size=1), st.integers(1, 50), st.integers(1, 8))
def test_two_packs_of_what_there_is_and_one_more_moves_few(name: str, version: int, count: int) -> None:
    target = name, version
    chosen = packs_of(target, count)
    assert len(set(chosen)) == len(chosen) == min(2, count) and all(k < count for k in chosen)
    grown = packs_of(target, count + 1)
    assert count in grown or grown == chosen


def test_the_packs_share_the_work() -> None:
    first = [packs_of((f"t/m{k}", 1), 4)[0] for k in range(1000)]
    assert all(200 < first.count(k) < 300 for k in range(4))


def test_what_is_missing_comes_and_what_nobody_wants_goes() -> None:
    packs = [pack(0, entry(A)), pack(1)]
    found = plan({B: 1}, (), packs, 2)
    assert found["shared-0"].add == [B] and [e.model for e in found["shared-0"].remove] == ["t/a"]
    assert found["shared-1"].add == [B] and not found["shared-1"].remove
    assert plan({A: 1}, (), [pack(0, entry(A)), pack(1, entry(A))], 2) == {}, "at rest nothing is ordered"


def test_what_is_to_have_replicas_of_its_own_stays_until_it_does() -> None:
    assert plan({}, {A}, [pack(0, entry(A))], 2) == {}
    assert plan({}, (), [pack(0, entry(A))], 2)["shared-0"].remove


@pytest.mark.parametrize(
    ("state", "leaves"), [("waiting", False), ("loading", False), ("failed", False), ("ready", True)]
)
def test_an_earlier_revision_stays_until_the_later_is_ready(state: EntryState, leaves: bool) -> None:
    found = plan({A: 2}, (), [pack(0, entry(A), entry(A, state, 2, 1))], 1)
    assert [e.revision for orders in found.values() for e in orders.remove] == ([1] if leaves else [])


def test_routers_get_one_pack_to_send_to_and_another_to_spare() -> None:
    packs = [pack(0, entry(A, slot=3)), pack(1, entry(A, slot=5)), pack(2, entry(A, "failed"))]
    where = [
        (status.spec.pack.number, Endpoint(status.spec.id, one.slot))
        for status, one in serving(packs, ())
        if status.spec.pack is not None
    ]
    found = endpoints(A, where, dedicated=False)
    assert [e.standby for e in found] == [False, True]
    assert [e.replica for e in found] == [f"shared-{k}" for k in packs_of(A, 2)]
    assert all(e.standby for e in endpoints(A, where, dedicated=True))
    gone = {("shared-0", entry(A).key)}
    assert [status.spec.id for status, _ in serving(packs, gone)] == ["shared-1"]


@pytest.mark.parametrize(
    ("entries", "own", "expected"),
    [
        ([], NONE, Standing("requested", 0, "waits for a shared process")),
        ([entry(A, "loading")], NONE, Standing("starting", 0, "loading")),
        ([entry(A), entry(A)], NONE, Standing("ready", 2, "")),
        ([entry(A), entry(A, "failed")], NONE, Standing("ready", 1, "it broke")),
        ([entry(A, "failed")], NONE, Standing("failed", 0, "it broke", 1)),
        ([entry(A, "loading")], OWN, Standing("ready", 2, "is being loaded into the shared processes")),
        ([entry(A, "failed")], OWN, Standing("ready", 2, "stays in its own replicas: it broke")),
        ([entry(A, revision=0)], NONE, Standing("ready", 1, "a change of it is being loaded")),
    ],
)  # fmt: skip
def test_how_a_shared_deployment_stands(entries: list[CatalogEntry], own: Standing, expected: Standing) -> None:
    assert standing(1, entries, own) == expected


LIMITS = Packing(promote_per_s=50.0, promote_after_s=10.0, demote_per_s=5.0, demote_after_s=60.0)


def after(rates: list[tuple[int, int]], placed: str = "shared") -> list[tuple[int, Move]]:
    """(Seconds, requests a second) in turn -> when it is moved, and where to."""
    load, now, moves = Load(), 0, []
    for seconds, rate in rates:
        for _ in range(seconds):
            now += 1
            load.observe(rate, float(now), LIMITS)
            if (move := judge(placed, load, float(now), LIMITS)) is not None:  # type: ignore[arg-type]
                moves.append((now, move))
                placed = move.placed
    return moves


def test_a_load_that_stays_promotes_and_one_that_is_gone_demotes() -> None:
    (up, promoted), (down, demoted) = after([(60, 100), (200, 0)])
    assert 10 <= up < 20 and promoted.placed == "dedicated" and "50 or more" in promoted.why
    assert 120 <= down < 140 and demoted.placed == "shared" and "5 or fewer" in demoted.why


@pytest.mark.parametrize("rates", [[(5, 200), (300, 0)], [(300, 30)], [(4, 90), (4, 10)] * 40])
def test_a_burst_or_a_load_between_moves_nothing(rates: list[tuple[int, int]]) -> None:
    assert after(rates) == []


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 200)), max_size=20))
def test_it_never_moves_faster_than_its_dwell_times(rates: list[tuple[int, int]]) -> None:
    moves = after(rates)
    for (before, _), (at, move) in itertools.pairwise(moves):
        assert at - before >= (LIMITS.promote_after_s if move.placed == "dedicated" else LIMITS.demote_after_s)
    assert [move.placed for _, move in moves] == ["dedicated", "shared"] * (len(moves) // 2) + ["dedicated"] * (
        len(moves) % 2
    )


def test_who_has_ended_two_shared_processes_is_served_apart() -> None:
    assert isolate("shared", 1) is None and isolate("dedicated", 9) is None
    move = isolate("shared", 2)
    assert move is not None and move.placed == "isolated"
