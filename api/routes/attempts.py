"""The attempts of a job and their logs."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from api.deps import JobsReader, ReadSession, SettingsDep, StoreDep
from api.logs import find_log
from api.openapi import problems
from api.ranges import serve_ranges
from api.representations import read_attempt
from api.schemas.attempts import AttemptList
from registry import attempts, jobs

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["progress"])

MAX_LINES = 10_000
_TEXT = "text/plain; charset=utf-8"
_LOG_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The log as it is now.", "content": {"text/plain": {}}},
    206: {"description": "The range asked for.", "content": {"text/plain": {}}},
    304: {"description": "Nothing was added."},
    **problems(401, 403, 404, 416, 422),
}


@router.get("/attempts", summary="List attempts", responses=problems(401, 403, 404, 422))
def list_attempts(job_id: str, who: JobsReader, session: ReadSession) -> AttemptList:
    """Every time a worker took the job, and how it ended."""
    jobs.get(session, who.tenant_id, job_id)
    rows = attempts.list_for_job(session, job_id)
    return AttemptList(data=[read_attempt(row) for row in rows])


@router.head("/logs", summary="Describe the log", response_class=Response, responses=_LOG_RESPONSES)
@router.get("/logs", summary="Read the log", response_class=Response, responses=_LOG_RESPONSES)
def read_log(
    request: Request,
    job_id: str,
    who: JobsReader,
    session: ReadSession,
    store: StoreDep,
    settings: SettingsDep,
    attempt: Annotated[
        int | None, Query(ge=1, le=2**31, description="Default: the last attempt.")
    ] = None,
    tail: Annotated[
        int | None, Query(ge=1, le=MAX_LINES, description="Only so many lines of its end.")
    ] = None,
    _range: Annotated[
        str | None, Header(alias="Range", description="`bytes=…`, to read what was added.")
    ] = None,
) -> Response:
    """What the run printed, of one attempt: whole, a range of it, or its last lines."""
    jobs.get(session, who.tenant_id, job_id)
    log = find_log(settings, store, attempts.get(session, job_id, attempt))
    headers = {"Cache-Control": "private, no-cache"}
    if tail is not None:
        content = b"" if request.method == "HEAD" else log.tail(tail)
        return Response(content, headers=headers, media_type=_TEXT)
    return serve_ranges(
        request, log.read, length=log.length, etag=log.etag, media_type=_TEXT, headers=headers
    )
