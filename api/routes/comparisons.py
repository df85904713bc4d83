"""Jobs side by side, and the frontier of a base model."""

import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from api.deps import JobsReader, ReadSession
from api.errors import Problem
from api.openapi import problems
from api.schemas.comparisons import (
    CostRead,
    FigureRead,
    OtherModelRead,
    PairedRead,
    PlacementRead,
    PublicModelRead,
    StandingRead,
)
from api.schemas.models import ComparedJob, ComparisonRead, FrontierRead, PointRead
from registry import comparisons, jobs, placement
from registry.comparisons import Point
from registry.placement import PairedEvaluation, Placement, Standing
from registry.public_models import models_near
from registry.tables import Evaluation, Job

router = APIRouter(prefix="/v1", tags=["comparisons"])

MAX_JOBS = 50
_LOWER_IS_BETTER = re.compile("perplexity|_seconds|bytes")
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
        jobs=[
            _compared(row, [p for p in found if p.job_id == row.id], best, _paired(session, row))
            for row in rows
        ],
        differences=comparisons.differences([row.recipe for row in rows]),
    )


def _paired(session: Session, job: Job) -> list[PairedEvaluation]:
    placed = placement.place(session, job)
    return placement.compare(placed.parent, placed.result) if placed.result else []


def _compared(
    job: Job, found: Sequence[Point], best: set[str], paired: Sequence[PairedEvaluation]
) -> ComparedJob:
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
        against_parent=[_read_pair(pair) for pair in paired],
    )


@router.get(
    "/jobs/{job_id}/comparison",
    summary="Place a job",
    responses=problems(401, 403, 404, 422),
)
def get_placement(
    job_id: str,
    who: JobsReader,
    session: ReadSession,
    models: Annotated[
        str | None,
        Query(max_length=2000, description="Public models to show too, commas between."),
    ] = None,
) -> PlacementRead:
    """The job's model beside its parent, its untrained cut, and public models of its size.

    Where both were measured on the same rows the difference is taken row by row.
    """
    job = jobs.get(session, who.tenant_id, job_id)
    placed = placement.place(session, job)
    size = placed.result.num_parameters if placed.result else job.params_target
    also = (models or "").split(",")
    return PlacementRead(
        job=job.id,
        model=job.model,
        parent=_read_standing(placed.parent),
        cut=_read_standing(placed.cut) if placed.cut else None,
        result=_read_standing(placed.result) if placed.result else None,
        against_parent=_pairs(placed, placed.parent),
        against_cut=_pairs(placed, placed.cut),
        others=[
            OtherModelRead(
                name=other.name or "",
                params=other.num_parameters,
                figures=[_read_figure(row) for row in other.evaluations],
                against_result=_pairs(placed, other),
            )
            for other in placed.others
        ],
        public_models=[
            PublicModelRead(
                name=model.name,
                params=model.num_parameters,
                figures=dict(model.figures),
                source=model.source,
                protocol=model.protocol,
            )
            for model in models_near(size or 0, also)
        ],
        cost=CostRead(
            device=placed.device,
            device_seconds=placed.device_seconds,
            tokens=placed.num_tokens,
            energy_joules=placed.energy_joules,
        ),
    )


def _pairs(placed: Placement, first: Standing | None) -> list[PairedRead]:
    if first is None or placed.result is None:
        return []
    return [_read_pair(pair) for pair in placement.compare(first, placed.result)]


def _read_pair(pair: PairedEvaluation) -> PairedRead:
    found = pair.comparison
    return PairedRead(
        suite=pair.suite,
        metric=pair.metric,
        rows=found.num_rows,
        difference=found.difference,
        stderr=found.stderr,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        greater=found.num_greater,
        less=found.num_less,
        test=found.test,
    )


def _read_standing(standing: Standing) -> StandingRead:
    return StandingRead(
        increment=standing.increment,
        params=standing.num_parameters,
        figures=[_read_figure(row) for row in standing.evaluations],
    )


def _read_figure(row: Evaluation) -> FigureRead:
    lower = row.suite == "domains" or _LOWER_IS_BETTER.search(row.metric) is not None
    return FigureRead(
        suite=placement.suite_of(row),
        metric=row.metric,
        better="lower" if lower else "higher",
        value=row.value,
        stderr=row.stderr,
        n=row.num_samples,
        protocol=row.protocol,
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
            decode_tokens_per_second=point.speed,
            on_frontier=point.checkpoint_id in best,
        )
        for point in found
    ]
