"""Use cases: what routers have found out is kept, and lifted by people."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from headrace.controlplane import quarantine_store as store
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import Platform, Request
from headrace.core import resources as r
from headrace.core.errors import InvalidInput, NotFound
from headrace.core.report import Condemned


async def keep(platform: Platform, found: Sequence[Condemned]) -> None:
    """Write down what a router reports, and have all routers know."""
    if await platform.store.run(lambda c: store.record(c, found)):
        await platform.routing.publish()


async def lift(
    platform: Platform, request: Request, name: str, version: int, digest: str | None
) -> r.Outcome[r.Page[r.Quarantined]]:
    """Let an input, or (None) all of a version's, through again. The result is what is left of the version's.

    Raises:
        NotFound: the input is not in quarantine.
    """
    request.principal.need("operator")
    if digest is not None and not (0 < len(digest) <= 32 and set(digest) <= set("0123456789abcdef")):
        raise InvalidInput(f"input: {digest[:40]!r}, expected 1 to 32 of 0-9 a-f", field="input")
    entity = f"{name}@{version}"

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        rows = [row for row in store.find(c, [model.id]) if row.version == version]
        lifted = [row.digest for row in rows if digest is None or row.digest.startswith(digest)]
        if digest is not None and not lifted:
            hint = f"headrace quarantine list {name}"
            raise NotFound(f"{entity}: no input {digest!r} is in quarantine", field="input", hint=hint)
        if digest is not None and len(lifted) > 1:
            raise InvalidInput(f"input: {digest!r} begins {len(lifted)} digests, give more of it", field="input")
        store.remove(c, model.id, version, lifted)
        return Record("quarantine.lift", tenant.name, entity, {"digests": lifted}, None, None, bool(lifted))

    def show(c: Connection, _: Record) -> r.Page[r.Quarantined]:
        owner = platform.tenant(c, request)
        return r.Page([one for one in store.shown(c, [owner], name) if one.version == version])

    return await platform.mutate(request, work, show, r.Page[r.Quarantined])
