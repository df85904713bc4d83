"""Steering a job: changing, pausing, resuming, retrying, cancelling and deleting it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Response

from api.bodies import Body, json_body
from api.deps import JobsDeleter, JobsWriter, WriteSession
from api.job_representations import read_job
from api.openapi import body_of, problems
from api.schemas.jobs import JobRead, JobUpdate, PauseRequest
from api.serving import require_match, written
from registry import jobs
from registry.tables import Job

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

IfMatch = Annotated[
    str | None, Header(description="Only if the job is still as this ETag, else 412.")
]
PauseBody = Annotated[Body[PauseRequest], Depends(json_body(PauseRequest, optional=True))]


@router.patch(
    "",
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
    return written(answer, {"ETag": f'"v{answer.version}"'})


_STEERING = problems(401, 403, 404, 409, 412, 422)


@router.post("/cancel", status_code=202, summary="Cancel", responses=_STEERING)
def cancel_job(
    job_id: str, who: JobsWriter, session: WriteSession, if_match: IfMatch = None
) -> JobRead:
    """Stop a job for good; its checkpoints stay. Repeating it changes nothing."""
    job = _locked(session, who.tenant_id, job_id, if_match)
    jobs.request_cancel(session, job)
    return read_job(session, job)


@router.post(
    "/pause",
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


@router.post("/resume", status_code=202, summary="Resume", responses=_STEERING)
def resume_job(
    job_id: str, who: JobsWriter, session: WriteSession, if_match: IfMatch = None
) -> JobRead:
    """Queue a paused job again; it goes on from its last checkpoint."""
    job = _locked(session, who.tenant_id, job_id, if_match)
    jobs.resume(session, job)
    return read_job(session, job)


@router.post("/retry", status_code=202, summary="Retry", responses=_STEERING)
def retry_job(
    job_id: str, who: JobsWriter, session: WriteSession, if_match: IfMatch = None
) -> JobRead:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
    job = _locked(session, who.tenant_id, job_id, if_match)
    jobs.retry(session, job)
    return read_job(session, job)


@router.delete("", status_code=204, summary="Delete", responses=_STEERING)
def delete_job(
    job_id: str, who: JobsDeleter, session: WriteSession, if_match: IfMatch = None
) -> None:
    """Remove an ended job and what it stored."""
    jobs.delete(session, _locked(session, who.tenant_id, job_id, if_match))


def _locked(session: WriteSession, tenant_id: str, job_id: str, if_match: str | None) -> Job:
    """The job, held until the answer; with `if_match` only if it is as the caller knows it."""
    job = jobs.get(session, tenant_id, job_id, for_update=True)
    require_match(if_match, f'"v{job.version}"')
    return job
