"""The dashboard's pages: the same registry functions as the JSON routes, as HTML."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from sqlalchemy.orm import Session

from api.dashboard.sign_in import check_form, viewer_of
from api.dashboard.views import curves_of, view_job
from api.deps import Principal, ReadSession, WriteSession
from api.errors import Problem
from api.representations import read_jobs
from registry import checkpoints, jobs
from registry.jobs import JobFilter
from registry.status import JobAction, JobStatus
from registry.tables import Job

router = APIRouter()

JOBS_PER_PAGE = 50
FILTERS: Mapping[str, tuple[JobStatus, ...]] = {
    "all": (),
    "active": (
        JobStatus.RUNNING,
        JobStatus.QUEUED,
        JobStatus.PAUSING,
        JobStatus.CANCELLING,
    ),
    "paused": (JobStatus.PAUSED,),
    "succeeded": (JobStatus.SUCCEEDED,),
    "failed": (JobStatus.FAILED, JobStatus.CANCELLED),
}
_STEER: Mapping[JobAction, Callable[[Session, Job], None]] = {
    JobAction.CANCEL: jobs.request_cancel,
    JobAction.PAUSE: jobs.request_pause,
    JobAction.RESUME: jobs.resume,
    JobAction.RETRY: jobs.retry,
    JobAction.DELETE: jobs.delete,
}
_SCOPES = {JobAction.DELETE: "jobs:delete"}


class SignInNeeded(Exception):
    """Nobody is signed in; the browser is sent to the form."""


def viewer(request: Request) -> Principal:
    """Who looks.

    Raises:
        SignInNeeded: nobody is signed in.
        Problem: 403 when the key may not read jobs.
    """
    who = viewer_of(request)
    if who is None:
        raise SignInNeeded
    if not who.may("jobs:read"):
        raise Problem("insufficient_scope", "This needs the scope jobs:read.")
    request.state.viewer = who
    return who


def redirect_to_sign_in(request: Request, _error: Exception) -> Response:
    """To the form and back; a part of a page that is being refreshed makes the whole page go."""
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Redirect": "/sign-in"})
    target = request.url.path if request.method == "GET" else "/jobs"
    return RedirectResponse(f"/sign-in?next={quote(target, safe='/')}", 303)


Viewer = Annotated[Principal, Depends(viewer)]
Shown = Annotated[str, Query(pattern="^(" + "|".join(FILTERS) + ")$")]


@router.get("/")
def start() -> Response:
    """The list of jobs is the first page."""
    return RedirectResponse("/jobs", 307)


@router.get("/jobs")
def jobs_page(
    request: Request,
    who: Viewer,
    session: ReadSession,
    show: Shown = "all",
    after: str | None = None,
) -> Response:
    """All jobs, newest first."""
    return _page(request, "jobs.html", _job_list(session, who, show, after))


@router.get("/jobs/table")
def jobs_table(
    request: Request,
    who: Viewer,
    session: ReadSession,
    show: Shown = "all",
    after: str | None = None,
) -> Response:
    """The part of the jobs page that is refreshed."""
    return _page(request, "_jobs_table.html", _job_list(session, who, show, after))


def _job_list(session: Session, who: Principal, show: str, after: str | None) -> dict[str, Any]:
    page = jobs.list_page(
        session,
        who.tenant_id,
        limit=JOBS_PER_PAGE,
        after=after,
        where=JobFilter(statuses=FILTERS[show]),
    )
    return {
        "jobs": read_jobs(session, page.items),
        "has_more": page.has_more,
        "show": show,
        "after": after,
        "filters": list(FILTERS),
    }


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """One job, live."""
    return _page(request, "job.html", {"view": view_job(session, who.tenant_id, job_id)})


@router.get("/jobs/{job_id}/live")
def job_live(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """The part of the job page that is refreshed."""
    return _page(request, "_job.html", {"view": view_job(session, who.tenant_id, job_id)})


@router.get("/jobs/{job_id}/curves")
def job_curves(job_id: str, who: Viewer, session: ReadSession) -> Response:
    """What the charts draw."""
    job = jobs.get(session, who.tenant_id, job_id)
    evaluations = checkpoints.evaluations_for_job(session, job_id)
    return JSONResponse(
        curves_of(session, job, evaluations).as_json(), headers={"Cache-Control": "no-store"}
    )


@router.post("/jobs/{job_id}/{action}")
def steer(
    request: Request,
    job_id: str,
    action: JobAction,
    who: Viewer,
    session: WriteSession,
    form_token: Annotated[str, Form(max_length=200)],
) -> Response:
    """What the buttons ask for."""
    check_form(request, form_token)
    scope = _SCOPES.get(action, "jobs:write")
    if not who.may(scope):
        raise Problem("insufficient_scope", f"This needs the scope {scope}.")
    job = jobs.get(session, who.tenant_id, job_id, for_update=True)
    _STEER[action](session, job)
    return RedirectResponse("/jobs" if action is JobAction.DELETE else f"/jobs/{job_id}", 303)


def _page(request: Request, template: str, context: Mapping[str, Any]) -> Response:
    response: Response = request.app.state.templates.TemplateResponse(
        request, template, dict(context)
    )
    response.headers["Cache-Control"] = "no-store"
    return response
