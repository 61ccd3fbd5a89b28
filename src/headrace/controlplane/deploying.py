"""Use cases: versions are deployed, scaled and undeployed."""

from __future__ import annotations

from sqlalchemy import Connection

from headrace.controlplane import accounts, packing, views
from headrace.controlplane.changes import Record
from headrace.controlplane.platform import REPLICAS_MAX, SHARE_MIN, Platform, Request, check_range, version_in
from headrace.controlplane.versioning import may_serve
from headrace.core.errors import Conflict, InvalidInput, NotFound
from headrace.core.names import VersionName, did_you_mean, parse_reference
from headrace.core.resources import Deployment, DeploymentCreate, Outcome
from headrace.deploy import store as deploy_store
from headrace.deploy.demand import Terms
from headrace.registry import lifecycle
from headrace.registry.store import ModelRow
from headrace.traffic import store as traffic
from headrace.traffic.allocate import weights_of

MEMORY_MB = (64, 1 << 24)
"""Least and most of `memory_mb`: below the least not even an empty replica starts."""

COMPUTE_MAX = 1024.0
"""Most that one replica may reserve."""


async def deploy(platform: Platform, request: Request, body: DeploymentCreate) -> Outcome[Deployment]:
    """Want a version to run. Raises Conflict where that takes away what serves."""
    request.principal.need("operator")
    reference = parse_reference(body.model)
    number = reference.version if body.version is None else body.version
    share = body.traffic_percent
    check_range("replicas", body.replicas, 0, REPLICAS_MAX)
    check_range("threads", body.threads, 1, 256)
    if body.memory_mb is not None:
        least, most = MEMORY_MB if body.mode != "shared" else (1, platform.packing.shared_memory_mb)
        check_range("memory_mb", body.memory_mb, least, most)
    if body.mode == "shared":
        packing.check_shared(body)
    check_terms(platform, body)
    if share is not None and not (share == 0 or SHARE_MIN <= share <= 100):
        expected = f"expected 0, or {SHARE_MIN:g} to 100"
        raise InvalidInput(f"traffic_percent: {share:g}, {expected}", field="traffic_percent")

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, reference.model)
        row = platform.version(c, model, number)
        version = row.version
        entity = f"{reference.model}@{version}"
        if body.mode != "dedicated":
            packing.check_packable(row, entity, body, platform.packing)
        if lifecycle.find(c, model.id, version).state == "retired":
            hint = f"push the model again: headrace models push {reference.model} FILE"
            raise Conflict(f"{entity} is retired", field="version", hint=hint)
        if share or (share is None and not traffic.current(c, model.id).epoch):  # the first takes all
            may_serve(c, tenant, model, version, "version")
        before = deploy_store.find(c, model.id, version)
        if before is not None:
            request.match_none(entity)
        if before is not None or request.if_match is not None:
            request.match(views.tag(show_deployment(platform, c, request, reference.model, version)))
        if before is not None and body.replicas == 0:
            must_not_serve(platform, c, model, version, f"headrace scale {entity} 0 --force")
        had = before.replicas if before is not None and before.placed != "shared" else 0
        stays = before is not None and before.mode == body.mode and before.placed == "dedicated"
        must_fit(platform, c, (body.replicas if body.mode == "dedicated" or stays else 0) - had)
        terms = Terms(tuple(body.tiers), body.spot)
        given = (body.replicas, body.threads, share, body.memory_mb, body.mode, terms, body.compute)
        deploy_store.create(c, model.id, version, *given)
        undo = f"headrace scale {entity} {before.replicas}" if before else f"headrace undeploy {entity}"
        after: dict[str, object] = {"replicas": body.replicas, "threads": body.threads, "traffic_percent": share}
        after |= {"memory_mb": body.memory_mb} if body.memory_mb is not None else {}
        after |= {"tiers": body.tiers} if body.tiers else {}
        after |= {"spot": True} if body.spot else {}
        after |= {"compute": body.compute} if body.compute is not None else {}
        if body.mode != "dedicated" or (before is not None and before.mode != "dedicated"):
            after["mode"] = body.mode
        shown = {"replicas": before.replicas, "threads": before.threads} if before else None
        return Record("deployment.create", tenant.name, entity, shown, after, undo)

    def show(c: Connection, record: Record) -> Deployment:
        return show_deployment(platform, c, request, reference.model, version_in(record))

    return await platform.mutate(request, work, show, Deployment)


async def scale(
    platform: Platform, request: Request, name: str, wanted: VersionName, replicas: int, force: bool = False
) -> Outcome[Deployment]:
    """Want another number of replicas. Raises Conflict for none while the version has traffic, unless forced."""
    request.principal.need("operator")
    check_range("replicas", replicas, 0, REPLICAS_MAX)

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        version = platform.number(c, model, wanted)
        entity = f"{name}@{version}"
        before = deployment(c, model, version)
        request.match(views.tag(show_deployment(platform, c, request, name, version)))
        if replicas == 0 and not force:
            must_not_serve(platform, c, model, version, f"headrace scale {entity} 0 --force")
        if before.mode == "shared":
            check_range("replicas", replicas, 0, 1)
        if before.placed != "shared":
            must_fit(platform, c, replicas - before.replicas)
        deploy_store.scale(c, before, replicas)
        undo = f"headrace scale {entity} {before.replicas}"
        return Record(
            "deployment.scale", tenant.name, entity, {"replicas": before.replicas}, {"replicas": replicas}, undo
        )

    def show(c: Connection, record: Record) -> Deployment:
        return show_deployment(platform, c, request, name, version_in(record))

    return await platform.mutate(request, work, show, Deployment)


async def undeploy(
    platform: Platform, request: Request, name: str, wanted: VersionName, force: bool = False
) -> Outcome[Deployment]:
    """Want a version to run no more; the result is what is left of it once it has drained. Raises Conflict while it
    has traffic, unless forced."""
    request.principal.need("operator")

    def work(c: Connection) -> Record:
        tenant, model = platform.model(c, request, name)
        version = platform.number(c, model, wanted)
        entity = f"{name}@{version}"
        before = deployment(c, model, version)
        request.match(views.tag(show_deployment(platform, c, request, name, version)))
        if not force:
            must_not_serve(platform, c, model, version, f"headrace undeploy {entity} --force")
        deploy_store.remove(c, model.id, version)
        undo = f"headrace deploy {entity} --replicas {before.replicas}"
        undo += f" --mode {before.mode}" if before.mode != "dedicated" else ""
        shown = {"replicas": before.replicas, "threads": before.threads, "created_at": before.created_at}
        return Record("deployment.remove", tenant.name, entity, shown, None, undo)

    def show(c: Connection, record: Record) -> Deployment:
        created_at = str((record.before or {})["created_at"])
        return Deployment(
            name, record.tenant, version_in(record), "stopped", 0, 0, 0, "undeployed", [], 0.0, created_at
        )

    return await platform.mutate(request, work, show, Deployment)


def check_terms(platform: Platform, body: DeploymentCreate) -> None:
    """Raises InvalidInput for hardware that nobody knows, or a reservation out of its limits."""
    known = {*platform.tiers, *(device.tier for device in platform.fleet.devices())}
    for tier in body.tiers:
        if tier not in known:
            expected = f"expected any of {', '.join(sorted(known))}"
            raise InvalidInput(f"tiers: {tier[:40]!r}, {expected}", field="tiers", hint=did_you_mean(tier[:40], known))
    if len(set(body.tiers)) < len(body.tiers):
        raise InvalidInput(f"tiers: {', '.join(body.tiers)}, expected each once", field="tiers")
    if body.compute is not None and not 0 <= body.compute <= COMPUTE_MAX:
        raise InvalidInput(f"compute: {body.compute:g}, expected 0 to {COMPUTE_MAX:g}", field="compute")


def must_fit(platform: Platform, c: Connection, more: int) -> None:
    """Raises Conflict where all deployments together would then want more replicas than there may be."""
    wanted = deploy_store.replicas_wanted(c)
    if more > 0 and wanted + more > platform.replicas_max:
        raise Conflict(
            f"replicas: {more} more, and {wanted} of at most {platform.replicas_max} are wanted already",
            field="replicas",
            hint="scale another deployment down, or raise the setting replicas_max",
        )


def must_not_serve(platform: Platform, c: Connection, model: ModelRow, version: int, force: str) -> None:
    """Raises Conflict while a version has traffic or tenants pinned to it; `force` is how to do it even so."""
    entity = f"{model.name}@{version}"
    percent = weights_of(traffic.current(c, model.id).split).get(version, 0.0)
    pinned = [t for t, v in traffic.list_overrides(c, [model.id]).get(model.id, {}).items() if v == version]
    even_so = f"; or have its callers refused: {force}"
    if percent > 0:
        hint = f"give it to another version first: headrace traffic set {model.name} VERSION=100{even_so}"
        raise Conflict(f"{entity} has {percent:g} % of the traffic", field="version", hint=hint)
    if pinned:
        name = accounts.find_tenants(c, pinned[:1])[pinned[0]].name
        hint = f"headrace traffic unpin {model.name} {name}{even_so}"
        raise Conflict(f"{entity}: tenant {name!r} is pinned to it", field="version", hint=hint)


def show_deployment(platform: Platform, c: Connection, request: Request, name: str, version: VersionName) -> Deployment:
    """A deployment as the API shows it. Raises NotFound."""
    tenant, model = platform.model(c, request, name)
    desired = deployment(c, model, platform.number(c, model, version))
    replicas, policy = views.replicas_of(platform.fleet.statuses()), traffic.current(c, model.id)
    residents, starts = platform.telemetry.residents(), platform.starts
    return views.deployment(desired, tenant.name, name, policy, replicas, platform.standings(), residents, starts)


def deployment(c: Connection, model: ModelRow, version: int) -> deploy_store.Desired:
    """A desired deployment. Raises NotFound."""
    found = deploy_store.find(c, model.id, version)
    if found is None:
        raise NotFound(
            f"{model.name}@{version} is not deployed",
            field="version",
            hint=f"headrace deploy {model.name}@{version}",
        )
    return found
