"""Jobs: create, list, read, steer, delete."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic_core import to_json
from sqlalchemy.orm import Session

from api import auditing
from api.answer_once import CreatedOnce, answer_once
from api.bodies import Body, json_body
from api.deps import JobsReader, JobsWriter, Principal
from api.direct_routes import DirectRoute
from api.estimates import (
    Foretold,
    file_sizes,
    foretell,
    model_token,
    summary_of,
)
from api.forecasts import estimate_with_history
from api.job_representations import read_job, read_jobs, read_new_job
from api.openapi import body_of, problems
from api.own_text import with_own_text
from api.parameters import described, read_headers, read_query
from api.paths import refuse_forbidden_paths
from api.queries import (
    METADATA_PARAMETER,
    Conditions,
    JobCreation,
    JobQueryDep,
    JobWait,
    MetadataFilter,
)
from api.representations import read_webhook
from api.schemas.jobs import (
    JobCreate,
    JobCreatedRead,
    JobDryRun,
    JobPage,
    JobRead,
)
from api.schemas.webhooks import WebhookSecretRead
from api.serving import matches_etag, written
from api.watching import JobWatcher, Mark, mark_of
from registry import job_rows, jobs, outbound, quotas, webhooks
from registry.db import session_on
from registry.estimates import find_pace
from registry.job_rows import JobFilter
from registry.prepared import Reader
from registry.settings import Settings
from registry.tenancy import looking_of, reading_of, writing_of
from registry.webhooks import WebhookWish

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
direct = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=DirectRoute)

_STILL_THERE_SECONDS = 5.0
"""How often is looked whether who polls has left."""

_read_body = json_body(JobCreate)


@direct.post(
    "",
    status_code=201,
    response_model=JobCreatedRead,
    summary="Create a job",
    openapi_extra={
        **described(query=JobCreation, headers=CreatedOnce),
        **body_of("JobCreate"),
    },
    responses={
        200: {"model": JobDryRun, "description": "Valid; nothing was stored (`dry_run`)."},
        **problems(400, 401, 403, 409, 413, 415, 422, 429),
    },
)
async def create_job(request: Request, who: JobsWriter) -> Response:
    """Queue a pruning job. Three fields are enough: `model`, `target`, `data`."""
    dry_run = read_query(request, JobCreation).dry_run
    key = read_headers(request, CreatedOnce).idempotency_key
    body = await _read_body(request)
    return await run_in_threadpool(_create, request, who, body, key, dry_run=dry_run)


def _create(
    request: Request, who: Principal, body: Body[JobCreate], key: str | None, *, dry_run: bool
) -> Response:
    state = request.app.state
    settings: Settings = state.settings
    # Before the transaction: whoever writes to SQLite must not wait for a hub meanwhile.
    body = with_own_text(state.sessions, who, body)
    refuse_forbidden_paths(body.value, settings)
    recipe = body.value.recipe
    token = model_token(state.sessions, who, recipe, settings)
    sizes = file_sizes(state.sessions, who, recipe)
    foretold = foretell(recipe, state.model_configs, sizes, token=token)
    if body.value.webhook is not None:
        outbound.parse(body.value.webhook.url, settings.webhook_private_hosts, "webhook.url")
    if dry_run:
        with reading_of(state.sessions, who.tenant_id) as session:
            return JSONResponse(_dry_run(session, who.tenant_id, body, foretold))
    with writing_of(state.sessions, who.tenant_id) as writer:
        answer = answer_once(
            writer,
            tenant_id=who.tenant_id,
            key=key,
            path="/v1/jobs",
            written=body.written,
            create=lambda: _created_queued(writer, who.tenant_id, body, foretold, settings),
            secret=("webhook", "secret"),
        )
        auditing.write_within(writer, request, 201)
    request.state.audited = True
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
    writer: Reader, tenant_id: str, body: Body[JobCreate], foretold: Foretold | None
) -> dict[str, Any]:
    """A job as it is answered.

    Raises:
        QuotaExceeded: the tenant has as many as it may.
        FileNotUsable: it names a file that is not there, or not whole.
    """
    wanted = body.value
    stored = foretold.estimate.storage_bytes if foretold else 0
    quotas.check_job(writer, tenant_id, storage_bytes=stored)
    job = jobs.create(
        writer,
        tenant_id=tenant_id,
        recipe=wanted.recipe,
        spec=body.written,
        name=wanted.name,
        metadata=wanted.metadata,
        priority=wanted.priority,
        max_attempts=wanted.limits.max_attempts,
        max_runtime_seconds=wanted.limits.max_runtime_s,
        reserved_bytes=stored,
        estimate=_summary(writer, tenant_id, foretold) if foretold else None,
        webhook=WebhookWish(hook.url, hook.events) if (hook := wanted.webhook) else None,
    )
    return read_new_job(writer, job).model_dump(mode="json")


def _summary(writer: Reader, tenant_id: str, foretold: Foretold) -> dict[str, Any]:
    with session_on(writer) as session:
        return summary_of(foretold, find_pace(session, tenant_id))


def _created_queued(
    writer: Reader,
    tenant_id: str,
    body: Body[JobCreate],
    foretold: Foretold | None,
    settings: Settings,
) -> dict[str, Any]:
    """The answer, with the job's own webhook if it has one, whose secret is shown this once."""
    answer = create_queued(writer, tenant_id, body, foretold)
    if body.value.webhook is None:
        return answer
    with session_on(writer) as session:
        row = webhooks.of_job(session, answer["id"])
    assert row is not None
    secret = webhooks.signing_secrets(row, settings.installation_secret, row.created_at)[0]
    shown = WebhookSecretRead(**read_webhook(row).model_dump(), secret=secret)
    return {**answer, "webhook": shown.model_dump(mode="json")}


def _created(answer: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    location = {"Location": f"/v1/jobs/{answer['id']}", "ETag": f'"v{answer["version"]}"'}
    content = to_json(answer)
    return Response(content, 201, {**location, **(headers or {})}, media_type="application/json")


@router.get(
    "",
    response_model=JobPage,
    summary="List jobs",
    openapi_extra=METADATA_PARAMETER,
    responses=problems(400, 401, 403, 422),
)
def list_jobs(
    request: Request, who: JobsReader, query: JobQueryDep, metadata: MetadataFilter
) -> Response:
    """The jobs of your tenant, newest first. Pages stay in place while jobs are added."""
    where = JobFilter(
        statuses=query.status,
        model=query.model,
        name_contains=query.q,
        metadata=metadata,
        created_after=query.created_after,
        created_before=query.created_before,
    )
    with looking_of(request.app.state.sessions, who.tenant_id) as reader:
        page = job_rows.list_page(
            reader,
            who.tenant_id,
            limit=query.limit,
            after=query.after,
            order=query.order,
            where=where,
        )
        read = read_jobs(reader, page.items)
    answer = JobPage(
        data=read,
        has_more=page.has_more,
        first_id=read[0].id if read else None,
        last_id=read[-1].id if read else None,
    )
    return written(answer)


@direct.get(
    "/{job_id}",
    response_model=JobRead,
    summary="Read a job",
    openapi_extra=described(path=["job_id"], query=JobWait, headers=Conditions),
    responses={304: {"description": "Unchanged."}, **problems(401, 403, 404, 422)},
)
async def get_job(request: Request, who: JobsReader) -> Response:
    """A job as it is now; with `wait` and `if_version`, as soon as it has changed."""
    job_id: str = request.path_params["job_id"]
    asked = read_query(request, JobWait)
    if asked.wait and asked.if_version is not None:
        await _changed(request, who.tenant_id, job_id, asked.if_version, asked.wait)
    if_none_match = read_headers(request, Conditions).if_none_match
    return await run_in_threadpool(_answer, request, who.tenant_id, job_id, if_none_match)


def _answer(request: Request, tenant_id: str, job_id: str, if_none_match: str | None) -> Response:
    with looking_of(request.app.state.sessions, tenant_id) as reader:
        if if_none_match is not None:
            headers = _entity(job_rows.version_of(reader, tenant_id, job_id))
            if matches_etag(if_none_match, headers["ETag"]):
                return Response(status_code=304, headers=headers)
        answer = read_job(reader, job_rows.look(reader, tenant_id, job_id))
    return written(answer, _entity(answer.version))


async def _changed(
    request: Request, tenant_id: str, job_id: str, version: int, seconds: float
) -> None:
    """Return once the job has another version, or after so many seconds."""
    ends = time.monotonic() + seconds
    watcher: JobWatcher = request.app.state.watcher
    while True:
        mark = await run_in_threadpool(_mark, request, tenant_id, job_id)
        left = ends - time.monotonic()
        if mark.version != version or left <= 0 or await request.is_disconnected():
            return
        await watcher.wait(job_id, mark, min(left, _STILL_THERE_SECONDS))


def _mark(request: Request, tenant_id: str, job_id: str) -> Mark:
    with looking_of(request.app.state.sessions, tenant_id) as reader:
        return mark_of(job_rows.look(reader, tenant_id, job_id))


def _entity(version: int) -> dict[str, str]:
    return {"ETag": f'"v{version}"', "Cache-Control": "private, no-cache"}
