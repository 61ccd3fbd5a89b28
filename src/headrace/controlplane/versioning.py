"""Use cases: a version is tested, approved, retired and deleted; aliases are moved; and whether a version may take
traffic, which every other use case that gives some asks here."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from headrace.controlplane import accounts, composing, quarantine_store, references, views
from headrace.controlplane.accounts import TenantRow
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import Platform, Request, version_in
from headrace.core.errors import Conflict, Forbidden, NotFound
from headrace.core.golden import Golden, GoldenResult
from headrace.core.names import VersionName, check_alias
from headrace.core.resources import AliasUpdate, GoldenRun, Model, Outcome, Version, VersionState
from headrace.core.specs import ExaminationRequest
from headrace.core.states import IllegalTransition
from headrace.registry import lifecycle, lineage, registration
from headrace.registry import parts as parts_store
from headrace.registry import references as reference_store
from headrace.registry import store as registry
from headrace.registry.parts import Part
from headrace.registry.store import ModelRow, VersionRow


def may_serve(c: Connection, tenant: TenantRow, model: ModelRow, version: int, field: str) -> None:
    """Raises Conflict for a version that may not be given traffic: its signature tests failed, it is retired, or its
    tenant wants versions approved and this one is not; and for a pipeline that runs such a version."""
    life = lifecycle.find(c, model.id, version)
    entity = f"{model.name}@{version}"
    if life.state == "registered":
        raise Conflict(
            f"{entity} may not take traffic: {failures(life.tests)}",
            field=field,
            hint=f"headrace models validate {entity} --golden FILE, or push a version that passes",
        )
    if life.state == "retired":
        raise Conflict(
            f"{entity} is retired", field=field, hint=f"push the model again: headrace models push {model.name}"
        )
    rule = accounts.find_tenants(c, [tenant.index])[tenant.index].approval  # as it is in this transaction
    if life.state != "approved" and rule != "optional":
        raise Conflict(
            f"{entity} is {life.state}, and tenant {tenant.name!r} wants versions approved before they take traffic",
            field=field,
            hint=f'headrace models approve {entity} --why "..."',
        )
    for part in parts_store.of(c, [(model.id, version)]).get((model.id, version), ()):
        row = registry.find_models(c, [part.version.model])[part.version.model]
        may_serve(c, accounts.find_tenants(c, [row.tenant])[row.tenant], row, part.version.version, field)


def failures(tests: tuple[GoldenResult, ...]) -> str:
    """The signature tests that failed, each with its first fault."""
    failed = [f"{result.case}: {result.faults[0].message}" for result in tests if result.faults]
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"{len(failed)} of {len(tests)} signature tests failed: {'; '.join(failed[:3])}{more}"


# ------------------------------------------------------------------------------------------------ states
Check = Callable[[Connection, TenantRow, ModelRow, VersionRow], None]


async def approve(platform: Platform, request: Request, name: str, wanted: VersionName) -> Outcome[Version]:
    """Say that a version may take traffic. Raises Forbidden where its tenant wants four eyes and these are the two that
    registered it, Conflict for an illegal step."""
    request.principal.need("operator")

    def check(c: Connection, tenant: TenantRow, model: ModelRow, row: VersionRow) -> None:
        rule = accounts.find_tenants(c, [tenant.index])[tenant.index].approval
        if rule == "four-eyes" and accounts.same_holder(c, row.created_by, request.principal.key):
            text = (
                f"{model.name}@{row.version} was registered by you: tenant {tenant.name!r} wants another to approve it"
            )
            raise Forbidden(text, field="version")

    return await _move(platform, request, name, wanted, "version.approve", "approved", check)


async def retire(platform: Platform, request: Request, name: str, wanted: VersionName) -> Outcome[Version]:
    """Say that a version may not be deployed any more. Raises Conflict while it is deployed, pinned or aliased."""
    request.principal.need("operator")

    def check(c: Connection, tenant: TenantRow, model: ModelRow, row: VersionRow) -> None:
        refuse_used(model, row.version, references.deployed(c, model, row.version))

    return await _move(platform, request, name, wanted, "version.retire", "retired", check)


async def _move(
    platform: Platform,
    request: Request,
    name: str,
    wanted: VersionName,
    action: str,
    to: VersionState,
    check: Check,
) -> Outcome[Version]:
    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        row = platform.version(c, model, wanted)
        entity = f"{name}@{row.version}"
        before = lifecycle.find(c, model.id, row.version)
        if before.state == to:
            return Record(action, tenant.name, entity, changed=False)
        check(c, tenant, model, row)
        try:
            lifecycle.move(c, before, to, request.principal.key)
        except IllegalTransition:
            raise Conflict(f"{entity} is {before.state}: {REFUSALS[before.state]}", field="version") from None
        return Record(action, tenant.name, entity, {"state": before.state}, {"state": to})

    return await platform.mutate(request, work, lambda c, record: show(platform, c, request, name, record), Version)


REFUSALS: dict[VersionState, str] = {
    "registered": "its signature tests failed; headrace models validate runs them again, or others",
    "validated": "headrace models approve says that it may take traffic",
    "approved": "it may take traffic; headrace models retire ends that",
    "retired": "for good; push the model again for a new version",
}
"""State -> why a step out of it is refused, and what to do."""


def refuse_used(model: ModelRow, version: int, uses: list[references.Use]) -> None:
    """Raises Conflict for the first of these uses of a version."""
    for use in uses:
        raise Conflict(f"{model.name}@{version} {use.what}", field="version", hint=use.hint)


async def validate(
    platform: Platform, request: Request, name: str, wanted: VersionName, body: GoldenRun
) -> Outcome[Version]:
    """Run a version's signature tests again, or others in their place; its state follows from them. Raises Conflict
    for a version that has none and none are given, that is retired, or that was approved and fails."""
    request.principal.need("developer")
    if body.golden is not None:
        registration.check_golden(body.golden)

    def look(c: Connection) -> tuple[VersionRow, Golden, tuple[Part, ...]]:
        _, model = platform.model(c, request, name)
        row = platform.version(c, model, wanted)
        life = lifecycle.find(c, model.id, row.version)
        golden = body.golden or life.golden
        if golden is None:
            text = f"{name}@{row.version} has no signature tests"
            raise Conflict(text, field="golden", hint=f"headrace models validate {name}@{row.version} --golden FILE")
        if life.state == "retired":
            raise Conflict(f"{name}@{row.version} is retired: {REFUSALS['retired']}", field="version")
        key = (model.id, row.version)
        return row, golden, parts_store.of(c, [key]).get(key, ())

    row, golden, parts = await platform.store.run(look)
    asked = ExaminationRequest(row.engine, "", row.options, row.signature, golden=golden)
    found = await composing.examine(platform, asked, (row.digest, row.size_bytes), parts)

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        before = lifecycle.find(c, model.id, platform.version(c, model, row.version).version)
        try:
            state = lifecycle.tested(c, before, golden, found.tests, request.principal.key)
        except IllegalTransition:
            raise Conflict(
                f"{name}@{row.version} is {before.state}; nothing was changed: {failures(found.tests)}", field="golden"
            ) from None
        passed = sum(not result.faults for result in found.tests)
        after = {"state": state, "passed": passed, "failed": len(found.tests) - passed}
        return Record("version.validate", tenant.name, f"{name}@{row.version}", {"state": before.state}, after)

    return await platform.mutate(request, work, lambda c, record: show(platform, c, request, name, record), Version)


async def delete(platform: Platform, request: Request, name: str, wanted: VersionName) -> Outcome[Version]:
    """Delete a retired version that nothing refers to; the result is what it was, its number is never given again. Its
    artifact goes with the next collection, unless another version needs it. Raises Conflict otherwise."""
    request.principal.need("operator")
    gone: list[Version] = []

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        row = platform.version(c, model, wanted)
        entity = f"{name}@{row.version}"
        life = lifecycle.find(c, model.id, row.version)
        if life.state != "retired":
            hint = f"headrace models retire {entity}"
            raise Conflict(f"{entity} is {life.state}: only a retired version is deleted", field="version", hint=hint)
        refuse_used(model, row.version, references.all_of(c, model, row.version))
        gone.append(views.versions(c, tenant, model, [row])[0])
        parts_store.forget(c, (model.id, row.version))
        quarantine_store.forget(c, model.id, row.version)
        registry.delete_version(c, model.id, row.version)
        lifecycle.forget(c, model.id, row.version)
        lineage.forget(c, model.id, row.version)
        reference_store.forget(c, model.id, row.version)
        return Record("version.delete", tenant.name, entity, {"digest": row.digest, "state": life.state})

    return await platform.mutate(request, work, lambda c, _: gone[0], Version)


# ------------------------------------------------------------------------------------------------ aliases
async def set_alias(platform: Platform, request: Request, name: str, alias: str, body: AliasUpdate) -> Outcome[Model]:
    """Point an alias at a version: for all who name it, at once. Raises Conflict for a version that may not serve."""
    request.principal.need("operator")
    check_alias(alias)

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        request.match(views.tag(views.one_model(c, tenant, model)))
        version = platform.version(c, model, body.version).version
        may_serve(c, tenant, model, version, "version")
        before = lifecycle.set_alias(c, model.id, alias, version)
        undo = f"headrace models alias {name} {alias} " + ("--remove" if before is None else str(before))
        was = None if before is None else {"version": before}
        return Record("model.alias", tenant.name, f"{name}@{alias}", was, {"version": version}, undo, before != version)

    return await platform.mutate(request, work, lambda c, _: show_model(platform, c, request, name), Model)


async def remove_alias(platform: Platform, request: Request, name: str, alias: str) -> Outcome[Model]:
    """Take an alias away. Raises NotFound."""
    request.principal.need("operator")

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        request.match(views.tag(views.one_model(c, tenant, model)))
        before = lifecycle.set_alias(c, model.id, alias, None)
        if before is None:
            raise NotFound(f"model {name!r} has no alias {alias[:63]!r}", field="alias")
        undo = f"headrace models alias {name} {alias} {before}"
        return Record("model.unalias", tenant.name, f"{name}@{alias}", {"version": before}, None, undo)

    return await platform.mutate(request, work, lambda c, _: show_model(platform, c, request, name), Model)


def show(platform: Platform, c: Connection, request: Request, name: str, record: Record) -> Version:
    """The version that a record is about."""
    tenant, model = platform.model(c, request, name)
    return views.versions(c, tenant, model, [platform.version(c, model, version_in(record))])[0]


def show_model(platform: Platform, c: Connection, request: Request, name: str) -> Model:
    """A model as the API shows it. Raises NotFound."""
    tenant, model = platform.model(c, request, name)
    return views.one_model(c, tenant, model)
