"""GreedyDual-Size-Frequency: who stays in a pack's memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.server.residency import Residency

MB = 1_000_000


def residency(**models: tuple[int, float, int]) -> Residency[str]:
    """Name -> bytes, seconds to load, requests; admitted in this order."""
    made = Residency[str]()
    for name, (size, cost_s, requests) in models.items():
        made.admit(name, size, cost_s)
        made.touch(name, requests)
    return made


def idle(_: object) -> bool:
    return False


def test_what_is_asked_for_more_often_stays() -> None:
    made = residency(often=(MB, 0.01, 50), seldom=(MB, 0.01, 2))
    assert made.victims(MB, 2 * MB, idle) == ["seldom"]


def test_what_costs_more_to_load_stays() -> None:
    made = residency(dear=(MB, 0.5, 2), cheap=(MB, 0.01, 2))
    assert made.victims(MB, 2 * MB, idle) == ["cheap"]


def test_of_two_that_cost_the_same_the_larger_leaves() -> None:
    made = residency(small=(MB, 0.01, 2), large=(4 * MB, 0.01, 2))
    assert made.victims(MB, 5 * MB, idle) == ["large"]


def test_what_fits_costs_nobody_its_place() -> None:
    assert residency(a=(MB, 0.01, 1)).victims(MB, 2 * MB, idle) == []


def test_what_is_at_work_stays_and_where_all_is_there_is_no_room() -> None:
    made = residency(a=(MB, 0.01, 1), b=(MB, 0.01, 9))
    assert made.victims(MB, 2 * MB, lambda key: key == "a") == ["b"]
    assert made.victims(MB, 2 * MB, lambda _: True) is None
    assert made.victims(3 * MB, 2 * MB, idle) is None, "larger than everything"


def test_what_was_hot_long_ago_ages() -> None:
    made = residency(once=(MB, 0.01, 20), now=(MB, 0.01, 1))
    evictions = 0
    while "once" in made.residents:
        made.remove(min(made.residents, key=lambda k: made.residents[k].priority), evicted=True)
        made.admit(f"new-{evictions}", MB, 0.01)
        made.touch(f"new-{evictions}")
        evictions += 1
        assert evictions < 100, "a model of the past stays for ever"
    assert evictions > 3


def test_a_model_that_is_measured_anew_keeps_its_frequency() -> None:
    made = residency(a=(MB, 0.01, 7))
    made.admit("a", 3 * MB, 0.02)
    assert (made.used_bytes, made.residents["a"].frequency) == (3 * MB, 8)


REQUESTS = st.lists(st.tuples(st.integers(0, 11), st.sampled_from([0.001, 0.02, 0.3])), min_size=1, max_size=200)


@given(REQUESTS, st.lists(st.integers(1, 40), min_size=12, max_size=12), st.integers(40, 120))
def test_never_above_the_room_and_everybody_is_served(
    requests: list[tuple[int, float]], sizes: list[int], room: int
) -> None:
    made = Residency[int]()
    clock = 0.0
    for model, cost_s in requests:
        if model not in made.residents:
            victims = made.victims(sizes[model] * MB, room * MB, idle)
            assert victims is not None, "each fits by itself, so each is let in at once"
            kept = {key: one.priority for key, one in made.residents.items() if key not in victims}
            assert all(made.residents[v].priority <= p for v in victims for p in kept.values())
            for victim in victims:
                made.remove(victim, evicted=True)
            made.admit(model, sizes[model] * MB, cost_s)
        made.touch(model)
        assert made.used_bytes == sum(one.bytes for one in made.residents.values()) <= room * MB
        assert made.clock >= clock
        clock = made.clock
