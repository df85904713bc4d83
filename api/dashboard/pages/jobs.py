"""The list of jobs, and the buttons that steer one."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.figures import Sparkline, sparkline
from api.dashboard.sign_in import FormToken, check_form
from api.dashboard.viewing import JobsActor, Viewer, go, show
from api.deps import Principal, ReadSession, WriteSession
from api.errors import Problem
from api.job_representations import read_jobs
from api.representations import QUALITY
from registry import job_rows, jobs
from registry.job_rows import JobFilter
from registry.status import JobAction, JobStatus, allowed_actions
from registry.tables import Evaluation, Job

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

Shown = Annotated[str, Query(pattern="^(" + "|".join(FILTERS) + ")$")]
Wanted = Annotated[str, Query(max_length=200)]


@router.get("/jobs")
def jobs_page(
    request: Request,
    who: Viewer,
    session: ReadSession,
    show_only: Annotated[Shown, Query(alias="show")] = "all",
    q: Wanted = "",
    after: str | None = None,
) -> Response:
    """All jobs, newest first."""
    return show(request, "jobs.html", _job_list(session, who, show_only, q, after))


@router.get("/jobs/table")
def jobs_table(
    request: Request,
    who: Viewer,
    session: ReadSession,
    show_only: Annotated[Shown, Query(alias="show")] = "all",
    q: Wanted = "",
    after: str | None = None,
) -> Response:
    """The part of the jobs page that is refreshed."""
    return show(request, "_jobs_table.html", _job_list(session, who, show_only, q, after))


def _job_list(
    session: Session, who: Principal, shown: str, q: str, after: str | None
) -> dict[str, Any]:
    page = job_rows.list_page(
        session,
        who.tenant_id,
        limit=JOBS_PER_PAGE,
        after=after,
        where=JobFilter(statuses=FILTERS[shown], name_contains=q.strip() or None),
    )
    kept = {"show": shown} | ({"q": q} if q else {})
    return {
        "jobs": read_jobs(session, page.items),
        "sparklines": sparklines(session, [job.id for job in page.items]),
        "has_more": page.has_more,
        "show": shown,
        "q": q,
        "after": after,
        "filters": list(FILTERS),
        "query": urlencode(kept),
        "here": urlencode(kept | ({"after": after} if after else {})),
    }


def sparklines(session: Session, job_ids: list[str]) -> dict[str, Sparkline]:
    """The held-out perplexity of each job in the order it was measured, as small drawings."""
    suite, metric = QUALITY
    query = (
        select(Evaluation.job_id, Evaluation.value)
        .where(
            Evaluation.job_id.in_(job_ids),
            Evaluation.suite == suite,
            Evaluation.metric == metric,
            Evaluation.stage != "pruned",
            Evaluation.value.is_not(None),
        )
        .order_by(Evaluation.job_id, Evaluation.increment)
    )
    values: dict[str, list[float]] = {}
    for job_id, value in session.execute(query):
        values.setdefault(job_id, []).append(value or 0.0)
    return {job_id: sparkline(line) for job_id, line in values.items() if len(line) > 1}


@router.post("/jobs/cancel")
def cancel_chosen(
    who: JobsActor,
    session: WriteSession,
    chosen: Annotated[list[str], Form(alias="job", max_length=JOBS_PER_PAGE)] = [],  # noqa: B006
) -> Response:
    """Cancel those of the chosen jobs that have not ended."""
    for job_id in dict.fromkeys(chosen):
        job = jobs.get(session, who.tenant_id, job_id, for_update=True)
        if JobAction.CANCEL in allowed_actions(JobStatus(job.status)):
            jobs.request_cancel(session, job)
    return go("/jobs")


@router.post("/jobs/{job_id}/{action}")
def steer(
    request: Request,
    job_id: str,
    action: JobAction,
    who: Viewer,
    session: WriteSession,
    form_token: FormToken,
) -> Response:
    """What the buttons ask for."""
    check_form(request, form_token)
    request.state.principal = who
    scope = _SCOPES.get(action, "jobs:write")
    if not who.may(scope):
        raise Problem("insufficient_scope", f"This needs the scope {scope}.")
    job = jobs.get(session, who.tenant_id, job_id, for_update=True)
    _STEER[action](session, job)
    return go("/jobs" if action is JobAction.DELETE else f"/jobs/{job_id}")
