"""How two of our processes make sure of each other on TCP, before any frame is read. Pure: nonces are given.

    initiator                                   acceptor
                  <- greeting: MAGIC nonce_a
    nonce_i proof_i length name ->                        the acceptor looks up the key by name, and checks
                  <- proof_a                              the initiator checks; frames may follow at once

A proof is HMAC-SHA256 under the key that both hold, of the side, the purpose, both nonces and the name. So what one
says is of no use on another connection, to the other side, or for another purpose; and who does not hold the key is
told nothing that depends on it. Each replica has a key of its own (`replica_key`): it runs models' code, which must not
be able to speak for others. The stream after it is not encrypted: who can alter packets on the network can alter that.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final, Literal

Purpose = Literal["requests", "reports"]
"""`requests`: router to replica; `reports`: replica to control plane."""

MAGIC: Final = b"HRC1"
NONCE: Final = 32
"""Bytes, from a source nobody can foresee."""
PROOF: Final = 32
NAME_MAX: Final = 255
GREETING: Final = len(MAGIC) + NONCE
ANSWER: Final = NONCE + PROOF + 1
"""Bytes of the initiator's message before the name."""


class Refused(ConnectionError):
    """The other side is not one of ours, or not of this release. Says nothing that helps it."""


def replica_key(secret: bytes, replica: str) -> bytes:
    """The key of one replica, from the cluster's secret."""
    return hmac.digest(secret, b"replica\0" + replica.encode(), hashlib.sha256)


def _proof(key: bytes, side: bytes, purpose: str, nonce_a: bytes, nonce_i: bytes, name: bytes) -> bytes:
    said = b"\0".join((side, purpose.encode(), nonce_a + nonce_i + name))
    return hmac.digest(key, said, hashlib.sha256)


class Initiator:
    """The side that connects.

    Args:
        key: of the replica that is one of the two.
        name: of that replica.
        nonce: `NONCE` bytes.
    """

    def __init__(self, key: bytes, purpose: Purpose, name: str, nonce: bytes) -> None:
        self.done = False
        self.rest = b""
        """What came behind the handshake: the first frames."""
        self._key = key
        self._purpose = purpose
        self._name = name.encode()
        self._nonce = nonce
        self._nonce_a = b""
        self._have = b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the other side; returns those to send. Raises Refused."""
        self._have += data
        answer = b""
        if not self._nonce_a and len(self._have) >= GREETING:
            if not self._have.startswith(MAGIC):
                raise Refused("the other side does not speak this protocol")
            self._nonce_a, self._have = self._have[len(MAGIC) : GREETING], self._have[GREETING:]
            proof = _proof(self._key, b"initiator", self._purpose, self._nonce_a, self._nonce, self._name)
            answer = self._nonce + proof + bytes((len(self._name),)) + self._name
        if self._nonce_a and not self.done and len(self._have) >= PROOF:
            expected = _proof(self._key, b"acceptor", self._purpose, self._nonce_a, self._nonce, self._name)
            if answer or not hmac.compare_digest(self._have[:PROOF], expected):  # it cannot know our nonce yet
                raise Refused("the other side does not hold the cluster's secret")
            self.done, self.rest, self._have = True, self._have[PROOF:], b""
        return answer


class Acceptor:
    """The side that is connected to.

    Args:
        key_of: the key of the replica of this name; None where there cannot be one.
        nonce: `NONCE` bytes.
    """

    def __init__(self, purpose: Purpose, key_of: Callable[[str], bytes | None], nonce: bytes) -> None:
        self.done = False
        self.name = ""
        """Of the replica that is one of the two; known once it is done."""
        self.greeting = MAGIC + nonce
        self._purpose = purpose
        self._key_of = key_of
        self._nonce = nonce
        self._have = b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the other side; returns those to send. Raises Refused."""
        self._have += data
        if len(self._have) < ANSWER:
            return b""
        length = self._have[ANSWER - 1]
        if self.done or not length or len(self._have) > ANSWER + length:
            raise Refused("more than a handshake was sent before it was over")
        if len(self._have) < ANSWER + length:
            return b""
        nonce_i, proof, name = self._have[:NONCE], self._have[NONCE : NONCE + PROOF], self._have[ANSWER:]
        key = self._key_of(name.decode("utf-8", "replace"))
        # Compared in any case: how long a refusal takes tells nothing of which names there are.
        expected = _proof(key or bytes(PROOF), b"initiator", self._purpose, self._nonce, nonce_i, name)
        if not hmac.compare_digest(proof, expected) or key is None:
            raise Refused("the other side does not hold the cluster's secret")
        self.done, self.name, self._have = True, name.decode("utf-8", "replace"), b""
        return _proof(key, b"acceptor", self._purpose, self._nonce, nonce_i, name)
