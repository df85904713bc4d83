"""The pages of one job, and what keeps them current."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api.dashboard.curves import drawings_of
from api.dashboard.log_view import MoreLog, view_log
from api.dashboard.snippets import snippets
from api.dashboard.timeline import view_timeline
from api.dashboard.viewing import Viewer, show
from api.dashboard.views import heatmaps_of, newest_events, view_head, view_job
from api.deps import Principal, ReadSession, SettingsDep, StoreDep
from api.representations import read_widths
from registry import checkpoints, jobs

router = APIRouter(prefix="/jobs/{job_id}")

ALL_EVENTS = 1000
Attempt = Annotated[int | None, Query(ge=1, le=2**31)]
Wanted = Annotated[str, Query(max_length=200)]


def page_of(
    request: Request,
    session: Session,
    who: Principal,
    job_id: str,
    tab: str,
    context: Mapping[str, Any],
) -> Response:
    """One of the pages of a job."""
    head = view_head(session, jobs.get(session, who.tenant_id, job_id))
    return show(request, f"job_{tab}.html", {"head": head, "tab": tab, "live": False, **context})


@router.get("")
def progress_page(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """How far the job is and what it has made."""
    view = view_job(session, who.tenant_id, job_id)
    return page_of(request, session, who, job_id, "progress", {"view": view})


@router.get("/live")
def progress_live(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """The part of that page that is refreshed; its curves are drawn by the browser."""
    view = view_job(session, who.tenant_id, job_id)
    context = {"view": view, "head": view.head, "tab": "progress", "live": True}
    return show(request, "_job_progress.html", context)


@router.get("/curves")
def curves(job_id: str, who: Viewer, session: ReadSession) -> Response:
    """What the browser draws."""
    job = jobs.get(session, who.tenant_id, job_id)
    evaluations = checkpoints.evaluations_for_job(session, job_id)
    widths = read_widths(job, checkpoints.increments(session, job_id))
    drawn = {
        "plots": {
            name: drawing.as_json()
            for name, drawing in drawings_of(session, job, evaluations).items()
        },
        "heatmaps": {
            name: {
                "title": one.title,
                "unit": one.unit,
                "rows": one.rows,
                "widths": one.widths,
                "floor": one.floor,
            }
            for name, one in heatmaps_of(widths).items()
        },
    }
    return JSONResponse(drawn, headers={"Cache-Control": "no-store"})


@router.get("/head")
def head_live(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """The head of the other pages, refreshed."""
    head = view_head(session, jobs.get(session, who.tenant_id, job_id))
    return show(request, "_job_head.html", {"head": head, "tab": ""})


@router.get("/timeline")
def timeline_page(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """What became of the job: statuses, phases, attempts and events."""
    return page_of(
        request, session, who, job_id, "timeline", _timeline_context(session, who, job_id)
    )


@router.get("/timeline/live")
def timeline_live(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """The part of that page that is refreshed."""
    context = _timeline_context(session, who, job_id)
    head = view_head(session, jobs.get(session, who.tenant_id, job_id))
    return show(request, "_job_timeline.html", {"head": head, "tab": "timeline", **context})


def _timeline_context(session: Session, who: Principal, job_id: str) -> dict[str, Any]:
    return {
        "timeline": view_timeline(session, who.tenant_id, job_id),
        "events": newest_events(session, job_id, ALL_EVENTS),
    }


@router.get("/logs")
def logs_page(
    request: Request,
    job_id: str,
    who: Viewer,
    session: ReadSession,
    store: StoreDep,
    settings: SettingsDep,
    attempt: Attempt = None,
    q: Wanted = "",
) -> Response:
    """The end of an attempt's log; with `q`, its lines that hold these words."""
    jobs.get(session, who.tenant_id, job_id)
    found = view_log(session, settings, store, job_id, attempt, q)
    return page_of(request, session, who, job_id, "logs", {"log": found, "q": q})


@router.get("/logs/more")
def logs_more(
    job_id: str,
    who: Viewer,
    session: ReadSession,
    store: StoreDep,
    settings: SettingsDep,
    after: Annotated[int, Query(ge=0)],
    attempt: Attempt = None,
    q: Wanted = "",
) -> MoreLog:
    """What was added to a log since it had `after` bytes."""
    jobs.get(session, who.tenant_id, job_id)
    return view_log(session, settings, store, job_id, attempt, q).more(after)


@router.get("/recipe")
def recipe_page(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """What was asked for and what it became, to copy."""
    job = jobs.get(session, who.tenant_id, job_id)
    context = {"snippets": snippets(str(request.base_url), job.spec)}
    return page_of(request, session, who, job_id, "recipe", context)
