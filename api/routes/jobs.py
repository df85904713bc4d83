"""Jobs: create, list, read, steer, delete."""

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api.answer_once import IdempotencyKey, answer_once
from api.bodies import Body, json_body
from api.deps import (
    JobsDeleter,
    JobsReader,
    JobsWriter,
    ModelConfigsDep,
    ReadSession,
    SettingsDep,
    WriteSession,
)
from api.errors import Problem
from api.estimates import (
    Foretold,
    file_sizes,
    foretell,
    model_token,
    summary_of,
)
from api.forecasts import estimate_with_history
from api.openapi import body_of, problems
from api.paths import refuse_forbidden_paths
from api.queries import METADATA_PARAMETER, JobQueryDep, MetadataFilter
from api.representations import read_job, read_jobs, read_webhook
from api.schemas.jobs import (
    JobCreate,
    JobCreatedRead,
    JobDryRun,
    JobPage,
    JobRead,
    JobUpdate,
    PauseRequest,
)
from api.schemas.webhooks import WebhookSecretRead
from api.serving import matches_etag, written
from registry import jobs, outbound, quotas, webhooks
from registry.estimates import find_pace
from registry.jobs import JobFilter
from registry.settings import Settings
from registry.tables import Job
from registry.tenancy import reading_of
from registry.webhooks import WebhookWish

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

CreateBody = Annotated[Body[JobCreate], Depends(json_body(JobCreate))]
IfMatch = Annotated[
    str | None, Header(description="Only if the job is still as this ETag, else 412.")
]
PauseBody = Annotated[Body[PauseRequest], Depends(json_body(PauseRequest, optional=True))]


@router.post(
    "",
    status_code=201,
    response_model=JobCreatedRead,
    summary="Create a job",
    openapi_extra=body_of("JobCreate"),
    responses={
        200: {"model": JobDryRun, "description": "Valid; nothing was stored (`dry_run`)."},
        **problems(400, 401, 403, 409, 413, 415, 422, 429),
    },
)
def create_job(
    request: Request,
    who: JobsWriter,
    body: CreateBody,
    session: WriteSession,
    settings: SettingsDep,
    configs: ModelConfigsDep,
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Validate and resolve, but store nothing.")] = False,
) -> Response:
    """Queue a pruning job. Three fields are enough: `model`, `target`, `data`."""
    refuse_forbidden_paths(body.value, settings)
    # Before the first statement: whoever writes to SQLite must not wait for a hub meanwhile.
    sessions, recipe = request.app.state.sessions, body.value.recipe
    token = model_token(sessions, who, recipe, settings)
    foretold = foretell(recipe, configs, file_sizes(sessions, who, recipe), token=token)
    if body.value.webhook is not None:
        outbound.parse(body.value.webhook.url, settings.webhook_private_hosts, "webhook.url")
    if dry_run:
        return JSONResponse(_dry_run(session, who.tenant_id, body, foretold))
    answer = answer_once(
        session,
        tenant_id=who.tenant_id,
        key=idempotency_key,
        path="/v1/jobs",
        written=body.written,
        create=lambda: _with_secret(
            session, create_queued(session, who.tenant_id, body, foretold), settings
        ),
        secret=("webhook", "secret"),
    )
    return _created(answer.body, answer.headers)


def _dry_run(
    session: Session, tenant_id: str, body: Body[JobCreate], foretold: Foretold | None
) -> dict[str, Any]:
    recipe = body.value.recipe
    answer = JobDryRun(
        resolved=recipe.model_dump(mode="json"),
        estimate=estimate_with_history(session, tenant_id, recipe, foretold) if foretold else None,
    )
    return answer.model_dump(mode="json")


def create_queued(
    session: Session, tenant_id: str, body: Body[JobCreate], foretold: Foretold | None
) -> dict[str, Any]:
    """A job as it is answered.

    Raises:
        QuotaExceeded: the tenant has as many as it may.
        FileNotUsable: it names a file that is not there, or not whole.
    """
    wanted = body.value
    pace = find_pace(session, tenant_id) if foretold else None
    stored = foretold.estimate.storage_bytes if foretold else 0
    quotas.check_job(session, tenant_id, storage_bytes=stored)
    job = jobs.create(
        session,
        tenant_id=tenant_id,
        recipe=wanted.recipe,
        spec=body.written,
        name=wanted.name,
        metadata=wanted.metadata,
        priority=wanted.priority,
        max_attempts=wanted.limits.max_attempts,
        max_runtime_seconds=wanted.limits.max_runtime_s,
        reserved_bytes=stored,
        estimate=summary_of(foretold, pace) if foretold else None,
        webhook=WebhookWish(hook.url, hook.events) if (hook := wanted.webhook) else None,
    )
    session.flush()
    return read_job(session, job).model_dump(mode="json")


def _with_secret(session: Session, answer: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The answer with the job's own webhook, whose secret is shown this once."""
    row = webhooks.of_job(session, answer["id"])
    if row is None:
        return answer
    secret = webhooks.signing_secrets(row, settings.installation_secret, row.created_at)[0]
    shown = WebhookSecretRead(**read_webhook(row).model_dump(), secret=secret)
    return {**answer, "webhook": shown.model_dump(mode="json")}


def _created(answer: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    location = {"Location": f"/v1/jobs/{answer['id']}", "ETag": f'"v{answer["version"]}"'}
    return JSONResponse(answer, 201, {**location, **(headers or {})})


@router.get(
    "",
    response_model=JobPage,
    summary="List jobs",
    openapi_extra=METADATA_PARAMETER,
    responses=problems(400, 401, 403, 422),
)
def list_jobs(
    who: JobsReader, query: JobQueryDep, metadata: MetadataFilter, session: ReadSession
) -> Response:
    """The jobs of your tenant, newest first. Pages stay in place while jobs are added."""
    page = jobs.list_page(
        session,
        who.tenant_id,
        limit=query.limit,
        after=query.after,
        order=query.order,
        where=JobFilter(
            statuses=query.status,
            model=query.model,
            name_contains=query.q,
            metadata=metadata,
            created_after=query.created_after,
            created_before=query.created_before,
        ),
    )
    answer = JobPage(
        data=read_jobs(session, page.items),
        has_more=page.has_more,
        first_id=page.items[0].id if page.items else None,
        last_id=page.items[-1].id if page.items else None,
    )
    return written(answer)


async def long_poll(
    request: Request,
    job_id: str,
    who: JobsReader,
    wait: Annotated[
        float, Query(ge=0, le=60, description="Seconds to wait for a version above `if_version`.")
    ] = 0,
    if_version: Annotated[int | None, Query(ge=0, description="The version you have.")] = None,
) -> None:
    """Return once the job's version differs from `if_version`, or after `wait` seconds."""
    if not wait or if_version is None:
        return
    ends = time.monotonic() + wait
    poll_seconds = request.app.state.api_settings.poll_seconds
    while await run_in_threadpool(_version, request, who.tenant_id, job_id) == if_version:
        left = ends - time.monotonic()
        if left <= 0 or await request.is_disconnected():
            return
        await asyncio.sleep(min(poll_seconds, left))


def _version(request: Request, tenant_id: str, job_id: str) -> int:
    with reading_of(request.app.state.sessions, tenant_id) as session:
        return jobs.get(session, tenant_id, job_id).version


@router.get(
    "/{job_id}",
    response_model=JobRead,
    summary="Read a job",
    dependencies=[Depends(long_poll)],
    responses={304: {"description": "Unchanged."}, **problems(401, 403, 404, 422)},
)
def get_job(
    job_id: str,
    who: JobsReader,
    session: ReadSession,
    if_none_match: Annotated[str | None, Header(description="An ETag you have.")] = None,
) -> Response:
    """A job as it is now; with `wait` and `if_version`, as soon as it has changed."""
    job = jobs.get(session, who.tenant_id, job_id)
    headers = {"ETag": f'"v{job.version}"', "Cache-Control": "private, no-cache"}
    if matches_etag(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return written(read_job(session, job), headers)


@router.patch(
    "/{job_id}",
    response_model=JobRead,
    summary="Change a job",
    openapi_extra=body_of("JobUpdate"),
    responses=problems(400, 401, 403, 404, 412, 413, 415, 422),
)
def update_job(
    job_id: str,
    who: JobsWriter,
    body: Annotated[Body[JobUpdate], Depends(json_body(JobUpdate))],
    session: WriteSession,
    if_match: IfMatch = None,
) -> Response:
    """Another name, other labels, priority or limits; with If-Match only if nothing changed."""
    job = _locked(session, who.tenant_id, job_id, if_match)
    if body.value.changes:
        jobs.update(session, job, body.value.changes)
    answer = read_job(session, job)
    headers = {"ETag": f'"v{answer.version}"'}
    return JSONResponse(answer.model_dump(mode="json"), headers=headers)


_STEERING = problems(401, 403, 404, 409, 412, 422)


@router.post("/{job_id}/cancel", status_code=202, summary="Cancel", responses=_STEERING)
def cancel_job(
    job_id: str, who: JobsWriter, session: WriteSession, if_match: IfMatch = None
) -> JobRead:
    """Stop a job for good; its checkpoints stay. Repeating it changes nothing."""
    job = _locked(session, who.tenant_id, job_id, if_match)
    jobs.request_cancel(session, job)
    return read_job(session, job)


@router.post(
    "/{job_id}/pause",
    status_code=202,
    summary="Pause",
    openapi_extra=body_of("PauseRequest", required=False),
    responses=problems(400, 401, 403, 404, 409, 412, 413, 415, 422),
)
def pause_job(
    job_id: str,
    who: JobsWriter,
    body: PauseBody,
    session: WriteSession,
    if_match: IfMatch = None,
) -> JobRead:
    """Stop at the next boundary (`save`) or at once, losing what came after the last checkpoint."""
    job = _locked(session, who.tenant_id, job_id, if_match)
    jobs.request_pause(session, job, body.value.checkpoint)
    return read_job(session, job)


@router.post("/{job_id}/resume", status_code=202, summary="Resume", responses=_STEERING)
def resume_job(
    job_id: str, who: JobsWriter, session: WriteSession, if_match: IfMatch = None
) -> JobRead:
    """Queue a paused job again; it goes on from its last checkpoint."""
    job = _locked(session, who.tenant_id, job_id, if_match)
    jobs.resume(session, job)
    return read_job(session, job)


@router.post("/{job_id}/retry", status_code=202, summary="Retry", responses=_STEERING)
def retry_job(
    job_id: str, who: JobsWriter, session: WriteSession, if_match: IfMatch = None
) -> JobRead:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
    job = _locked(session, who.tenant_id, job_id, if_match)
    jobs.retry(session, job)
    return read_job(session, job)


@router.delete("/{job_id}", status_code=204, summary="Delete", responses=_STEERING)
def delete_job(
    job_id: str, who: JobsDeleter, session: WriteSession, if_match: IfMatch = None
) -> None:
    """Remove an ended job and what it stored."""
    jobs.delete(session, _locked(session, who.tenant_id, job_id, if_match))


def _locked(session: WriteSession, tenant_id: str, job_id: str, if_match: str | None) -> Job:
    """The job, held until the answer; with `if_match` only if it is as the caller knows it."""
    job = jobs.get(session, tenant_id, job_id, for_update=True)
    if if_match is not None and not matches_etag(if_match, f'"v{job.version}"'):
        detail = f"The job is at version {job.version}."
        raise Problem("version_mismatch", detail, param="If-Match")
    return job
