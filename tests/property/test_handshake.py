from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.handshake import (
    ANSWER,
    GREETING,
    NAME_MAX,
    NONCE,
    PROOF,
    Acceptor,
    Initiator,
    Purpose,
    Refused,
    replica_key,
)

SECRET = b"s" * 32
Names = st.text(min_size=1, max_size=60).filter(lambda name: len(name.encode()) <= NAME_MAX)
Steps = st.lists(st.integers(1, 50), min_size=1)
Nonces = st.binary(min_size=NONCE, max_size=NONCE)


def pieces(data: bytes, steps: list[int]) -> Iterator[bytes]:
    at = k = 0
    while at < len(data):
        yield data[at : at + steps[k % len(steps)]]
        at += steps[k % len(steps)]
        k += 1


def meet(initiator: Initiator, acceptor: Acceptor, steps: list[int], behind: bytes = b"") -> None:
    """What a network does with the two, in pieces of any size."""
    answer = b"".join(initiator.receive(piece) for piece in pieces(acceptor.greeting, steps))
    proof = b"".join(acceptor.receive(piece) for piece in pieces(answer, steps))
    rest = proof + behind
    for piece in pieces(rest, steps):
        if initiator.done:
            initiator.rest += piece  # the connection is the protocol's by then
        else:
            assert initiator.receive(piece) == b""


def keys(name: str) -> bytes:
    return replica_key(SECRET, name)


@given(Names, Nonces, Nonces, Steps, st.binary(max_size=100))
def test_two_that_hold_the_key_know_each_other_however_the_network_cuts_it(
    name: str, one: bytes, other: bytes, steps: list[int], behind: bytes
) -> None:
    initiator = Initiator(keys(name), "requests", name, one)
    acceptor = Acceptor("requests", keys, other)
    meet(initiator, acceptor, steps, behind)
    assert initiator.done and acceptor.done and acceptor.name == name and initiator.rest == behind


@pytest.mark.parametrize(
    ("key", "name", "purpose"),
    [
        (replica_key(b"x" * 32, "a"), "a", "requests"),
        (keys("b"), "a", "requests"),
        (keys("a"), "b", "requests"),
        (keys("a"), "a", "reports"),
        (b"", "a", "requests"),
    ],
    ids=["another secret", "another's key", "another's name", "another purpose", "no key"],
)
def test_the_acceptor_refuses_who_does_not_hold_the_key_and_tells_it_nothing(
    key: bytes, name: str, purpose: Purpose
) -> None:
    initiator = Initiator(key, purpose, name, bytes(NONCE))
    acceptor = Acceptor("requests", keys, bytes(NONCE))
    with pytest.raises(Refused):
        acceptor.receive(initiator.receive(acceptor.greeting))
    assert not acceptor.done


def test_the_acceptor_knows_no_name_but_those_it_is_given() -> None:
    key = keys("a")
    acceptor = Acceptor("requests", {"a": key}.get, bytes(NONCE))
    with pytest.raises(Refused):
        acceptor.receive(Initiator(bytes(PROOF), "requests", "b", bytes(NONCE)).receive(acceptor.greeting))


def test_the_initiator_refuses_an_acceptor_without_the_key_and_a_reflection_of_itself() -> None:
    for speaks in (lambda mine: bytes(PROOF), lambda mine: mine[NONCE : NONCE + PROOF]):
        initiator = Initiator(keys("a"), "requests", "a", bytes(NONCE))
        mine = initiator.receive(Acceptor("requests", keys, bytes(NONCE)).greeting)
        with pytest.raises(Refused):
            initiator.receive(speaks(mine))
        assert not initiator.done


@given(Nonces, Nonces, Nonces)
def test_a_recorded_handshake_is_worth_nothing_on_another_connection(one: bytes, first: bytes, second: bytes) -> None:
    recorded = Initiator(keys("a"), "requests", "a", one).receive(Acceptor("requests", keys, first).greeting)
    acceptor = Acceptor("requests", keys, second)
    if first != second:
        with pytest.raises(Refused):
            acceptor.receive(recorded)


@given(st.binary(max_size=800), Steps)
def test_noise_is_refused_or_waited_for_and_little_of_it_is_kept(noise: bytes, steps: list[int]) -> None:
    sides = (Acceptor("requests", keys, bytes(NONCE)), Initiator(keys("a"), "requests", "a", bytes(NONCE)))
    for side in sides:
        fed = 0
        try:
            for piece in pieces(noise, steps):
                side.receive(piece)
                fed += len(piece)
        except Refused:
            pass
        else:
            assert fed < max(GREETING + PROOF, ANSWER + NAME_MAX)
        assert not side.done
