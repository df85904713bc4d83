"""Jobs side by side, and the frontier of a base model."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import JobsReader, ReadSession
from api.errors import Problem
from api.openapi import problems
from api.schemas.models import ComparedJob, ComparisonRead, FrontierRead, PointRead
from registry import comparisons, jobs
from registry.comparisons import Point
from registry.tables import Job

router = APIRouter(prefix="/v1", tags=["comparisons"])

MAX_JOBS = 50
_IDS = r"^job_[0-9a-f]{32}(,job_[0-9a-f]{32})*$"


@router.get("/compare", summary="Compare jobs", responses=problems(401, 403, 404, 422))
def compare_jobs(
    who: JobsReader,
    session: ReadSession,
    wanted: Annotated[
        str,
        Query(alias="jobs", pattern=_IDS, max_length=4096, description="Ids, commas between."),
    ],
) -> ComparisonRead:
    """The measured checkpoints of some jobs, and the fields in which their recipes differ."""
    ids = list(dict.fromkeys(wanted.split(",")))
    if len(ids) > MAX_JOBS:
        raise Problem("validation_error", f"jobs: at most {MAX_JOBS} at once", param="jobs")
    rows = [jobs.get(session, who.tenant_id, job_id) for job_id in ids]
    found = comparisons.points(session, who.tenant_id, job_ids=ids)
    best = comparisons.frontier(found)
    return ComparisonRead(
        jobs=[_compared(row, [p for p in found if p.job_id == row.id], best) for row in rows],
        differences=comparisons.differences([row.recipe for row in rows]),
    )


def _compared(job: Job, found: Sequence[Point], best: set[str]) -> ComparedJob:
    return ComparedJob(
        id=job.id,
        name=job.name,
        model=job.model,
        status=job.status,
        outcome=job.outcome,
        params_start=job.params_start,
        params_now=job.params_now,
        tokens_seen=job.tokens_seen,
        seconds=(job.result or {}).get("seconds"),
        points=_read_points(found, best),
    )


@router.get("/frontier", summary="Size against quality", responses=problems(401, 403, 422))
def get_frontier(
    who: JobsReader,
    session: ReadSession,
    model: Annotated[
        str, Query(min_length=1, max_length=4096, description="The base model, as jobs name it.")
    ],
) -> FrontierRead:
    """Every measured checkpoint of a base model; `on_frontier` marks those none beats."""
    found = comparisons.points(session, who.tenant_id, model=model)
    return FrontierRead(model=model, points=_read_points(found, comparisons.frontier(found)))


def _read_points(found: Sequence[Point], best: set[str]) -> list[PointRead]:
    return [
        PointRead(
            checkpoint=point.checkpoint_id,
            job=point.job_id,
            increment=point.increment,
            params=point.params,
            size_bytes=point.size_bytes,
            perplexity=point.perplexity,
            baseline_ratio=point.perplexity / point.base_perplexity
            if point.base_perplexity
            else None,
            on_frontier=point.checkpoint_id in best,
        )
        for point in found
    ]
