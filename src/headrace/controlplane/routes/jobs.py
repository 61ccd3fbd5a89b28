"""Optimisations, and the jobs that do them."""

from __future__ import annotations

from typing import Any

from litestar import Request as Http
from litestar import get, post
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy import Connection

from headrace.controlplane import optimising
from headrace.controlplane.routes.asked import Api, Cursor, Limit, State, Tenant, context, page, reach
from headrace.core import resources as r
from headrace.core.optimization import OptimizationCreate
from headrace.registry import jobs


@post("/api/v1/models/{model:str}/versions/{number:str}/optimize", status_code=202, summary="Optimise a version")
async def optimize(
    request: Http[Any, Any, Any],
    platform: Api,
    model: FromPath[str],
    number: FromPath[str],
    data: JSONBody[OptimizationCreate],
    tenant: Tenant = None,
) -> r.Outcome[r.Job]:
    """Developer. Queues a job: graph optimisation and INT8 of an ONNX version, behind an accuracy gate on held-out
    rows. A candidate that passes becomes a new version; else the job has failed, with the report."""
    asked = await context(request, tenant, data.reason)
    return await optimising.submit(platform, asked, model, number, data)


@get("/api/v1/models/{model:str}/versions/{number:str}/optimization", summary="Show an optimised version's report")
async def show_optimization(
    request: Http[Any, Any, Any], platform: Api, model: FromPath[str], number: FromPath[str], tenant: Tenant = None
) -> r.Job:
    """The job that made the version: size, speed and accuracy before and after, of every candidate."""
    asked = await context(request, tenant)
    return await platform.store.read(lambda c: optimising.report_of(platform, c, asked, model, number))


@get("/api/v1/jobs", summary="List jobs")
async def list_jobs(
    request: Http[Any, Any, Any],
    platform: Api,
    tenant: Tenant = None,
    model: FromQuery[str | None] = None,
    in_state: State = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> r.Page[r.Job]:
    """Oldest first."""
    asked = await context(request, tenant)

    def read(c: Connection) -> list[r.Job]:
        names = {one.name for one in reach(c, asked)}
        found = [optimising.view(c, job) for job in jobs.list_all(c)]
        return [
            job for job in found if job.tenant in names and model in (None, job.model) and in_state in (None, job.state)
        ]

    found = await platform.store.read(read)
    return page(found, limit, cursor, lambda j: (j.created_at, j.id), lambda j: f"{j.created_at},{j.id}", _read)


def _read(cursor: str) -> tuple[str, str]:
    at, id_ = cursor.split(",")
    return at, id_


@get("/api/v1/jobs/{id_:str}", summary="Show a job")
async def show_job(request: Http[Any, Any, Any], platform: Api, id_: FromPath[str], tenant: Tenant = None) -> r.Job:
    """Where it is, and its report once it has ended."""
    asked = await context(request, tenant)

    def read(c: Connection) -> r.Job:
        return optimising.view(c, optimising.find(platform, c, asked, id_))

    return await platform.store.read(read)


@post("/api/v1/jobs/{id_:str}/cancel", status_code=200, summary="Cancel a job")
async def cancel_job(
    request: Http[Any, Any, Any],
    platform: Api,
    id_: FromPath[str],
    data: JSONBody[r.Reason | None] = None,
    tenant: Tenant = None,
) -> r.Outcome[r.Job]:
    """Developer. One that has ended is refused (409)."""
    asked = await context(request, tenant, data.reason if data is not None else None)
    return await optimising.cancel(platform, asked, id_)


HANDLERS = [optimize, show_optimization, list_jobs, show_job, cancel_job]
