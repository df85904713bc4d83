"""The page of one job, and what keeps it current."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.dashboard.viewing import Viewer, show
from api.dashboard.views import curves_of, view_job
from api.deps import ReadSession
from registry import checkpoints, jobs

router = APIRouter()


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """One job, live."""
    return show(request, "job.html", {"view": view_job(session, who.tenant_id, job_id)})


@router.get("/jobs/{job_id}/live")
def job_live(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """The part of the job page that is refreshed."""
    return show(request, "_job.html", {"view": view_job(session, who.tenant_id, job_id)})


@router.get("/jobs/{job_id}/curves")
def job_curves(job_id: str, who: Viewer, session: ReadSession) -> Response:
    """What the charts draw."""
    job = jobs.get(session, who.tenant_id, job_id)
    evaluations = checkpoints.evaluations_for_job(session, job_id)
    return JSONResponse(
        curves_of(session, job, evaluations).as_json(), headers={"Cache-Control": "no-store"}
    )
