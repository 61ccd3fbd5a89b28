"""The hash chain of the audit: each row carries the SHA-256 of its own content and of the hash of the row before it, so
that a row cannot be changed, taken out or moved without every later hash being wrong. Pure.

The content is a row's columns, in the order of `Link`, each as a netstring (``5:hello,``; ``~,`` for null): anybody can
compute it again from the store with nothing but SHA-256. What the chain alone cannot tell: that somebody who may write
to the store computed all later hashes again, or took rows from the end and set the counter of changes back too. Against
that, keep an anchor - the head's id and hash - elsewhere: it is in the control plane's log after each change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import astuple, dataclass

GENESIS = "0" * 64
"""The hash before the first row."""


@dataclass(frozen=True, slots=True)
class Link:
    """A row's content as it is stored."""

    id: int
    at: str
    actor: str
    action: str
    tenant: str
    entity: str
    before: str | None
    after: str | None
    reason: str | None
    undo: str | None


@dataclass(frozen=True, slots=True)
class Break:
    """The first row at which the chain does not hold, and why."""

    id: int
    reason: str


def digest(previous: str, link: Link) -> str:
    """A row's hash, hex, after the hash of the row before it."""
    content = hashlib.sha256(previous.encode())
    for value in astuple(link):
        text = b"" if value is None else str(value).encode()
        content.update(b"~," if value is None else b"%d:%b," % (len(text), text))
    return content.hexdigest()


def rows(first: int, last: int) -> str:
    """How a message names them."""
    return f"change {first} is" if first == last else f"changes {first} to {last} are"


class Walk:
    """Walks along the chain.

    Args:
        id_: of the row before the first that is walked over; 0 for the very beginning.
        hash_: of that row.
    """

    def __init__(self, id_: int = 0, hash_: str = GENESIS) -> None:
        self.id = id_
        self.hash = hash_

    def over(self, links: Iterable[tuple[Link, str]]) -> Break | None:
        """Go on over these rows and the hashes that they carry; the first break, at which it stops."""
        for link, carried in links:
            if link.id != self.id + 1:
                return Break(link.id, f"{rows(self.id + 1, link.id - 1)} missing before it")
            if digest(self.hash, link) != carried:
                return Break(link.id, "its content is not what was written, or the row before it is not")
            self.id, self.hash = link.id, carried
        return None
