"""Use cases: the head of the audit's chain, and the whole of it walked over again."""

from __future__ import annotations

import re

from sqlalchemy import Connection, Row, select

from headrace.controlplane.chain import GENESIS, Break, Link, Walk, rows
from headrace.controlplane.changes import changes
from headrace.controlplane.platform import Platform
from headrace.core import revisions
from headrace.core.errors import InvalidInput
from headrace.core.resources import AuditBreak, AuditCheck, AuditHead

PAGE = 1000
"""Rows walked over in one transaction: nobody else waits longer for the store than these take."""


def head(c: Connection) -> AuditHead:
    """The last row of the chain."""
    query = select(changes.c.id, changes.c.hash, changes.c.at).order_by(changes.c.id.desc()).limit(1)
    row = c.execute(query).first()
    return AuditHead(0, GENESIS, "") if row is None else AuditHead(row.id, row.hash, row.at)


def read_anchor(text: str) -> tuple[int, str]:
    """``57:<64 hex digits>`` as ``headrace audit head`` writes it. Raises InvalidInput."""
    found = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", text)
    if found is None:
        expected = "expected CHANGE:HASH as `headrace audit head` writes it"
        raise InvalidInput(f"anchor: {text[:80]!r}, {expected}", field="anchor")
    return int(found[1]), found[2]


async def verify(platform: Platform, since: str | None, anchor: str | None) -> AuditCheck:
    """Walk along the chain.

    Args:
        platform: whose audit.
        since: a time as the store writes it: only over what came then or later; the row before it is believed.
        anchor: a row's id and hash, kept elsewhere, that must be there still.
    """
    kept = None if anchor is None else read_anchor(anchor)
    walk = await platform.store.run(lambda c: _begin(c, since))
    first = walk.id + 1
    while True:
        found, broken, last = await platform.store.run(lambda c: _step(c, walk))
        if broken is not None or not found:
            break
    if broken is None and walk.id < last:
        broken = Break(walk.id + 1, f"{rows(walk.id + 1, last)} missing from the end")
    if broken is None and kept is not None:
        broken = await platform.store.run(lambda c: _missed(c, *kept))
    end = await platform.store.run(head)
    told = None if broken is None else AuditBreak(broken.id, broken.reason)
    return AuditCheck(broken is None, walk.id + 1 - first, end, told)


def _begin(c: Connection, since: str | None) -> Walk:
    if since is None:
        return Walk()
    first = c.execute(select(changes.c.id).where(changes.c.at >= since).order_by(changes.c.id).limit(1)).scalar()
    query = select(changes.c.id, changes.c.hash).order_by(changes.c.id.desc()).limit(1)
    before = c.execute(query if first is None else query.where(changes.c.id < first)).first()
    return Walk() if before is None else Walk(before.id, before.hash)


def _step(c: Connection, walk: Walk) -> tuple[bool, Break | None, int]:
    """Walk a page on: whether there was any, where it broke, and the last id that was ever given to a row."""
    found = c.execute(select(changes).where(changes.c.id > walk.id).order_by(changes.c.id).limit(PAGE)).all()
    return bool(found), walk.over(_link(row) for row in found), revisions.last(c, "change")


def _link(row: Row[tuple[object, ...]]) -> tuple[Link, str]:
    fields = row._asdict()
    carried = fields.pop("hash")
    return Link(**fields), carried


def _missed(c: Connection, id_: int, hash_: str) -> Break | None:
    found = c.execute(select(changes.c.hash).where(changes.c.id == id_)).scalar()
    if found == hash_:
        return None
    return Break(id_, "it is not there any more" if found is None else "its hash is not the anchor's")
