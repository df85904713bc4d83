"""Size and speed against quality, over all checkpoints of a base model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session, aliased

from api.dashboard.scatter import Spot, scatter
from api.dashboard.units import count, decimal, figure
from api.dashboard.viewing import Viewer, show
from api.deps import ReadSession
from registry import comparisons
from registry.comparisons import Point
from registry.public_models import models_near
from registry.tables import Checkpoint, Evaluation, Job

router = APIRouter(prefix="/frontier")

MAX_MODELS = 100
PERPLEXITY = ("perplexity", "perplexity")
SPEED = ("speed", "decode_tokens_per_second")


@router.get("")
def frontier_page(
    request: Request,
    who: Viewer,
    session: ReadSession,
    model: Annotated[str | None, Query(max_length=4096)] = None,
) -> Response:
    """The frontier of the base model named in the URL; by default of the one used last."""
    models = _models(session, who.tenant_id)
    chosen = model or _last_measured(session, who.tenant_id) or "".join(models[:1])
    found = comparisons.points(session, who.tenant_id, model=chosen) if chosen else []
    best = comparisons.frontier(found)
    base = _base(session, who.tenant_id, chosen) if found else None
    names = _names(session, {point.job_id for point in found})
    public = models_near(round(base.params)) if base else []
    context = {
        "public": public,
        "models": models,
        "model": chosen,
        "points": found,
        "best": best,
        "base": base,
        "names": names,
        "by_size": scatter(
            [
                *(_spot(p, float(p.params), f"{count(p.params)} parameters", names) for p in found),
                *_dense(base, base.params if base else None, "parameters"),
            ],
            x_title="Parameters",
            y_title="Held-out perplexity",
            more_x_is_better=False,
            marks=[(float(one.num_parameters), one.name.partition("/")[2]) for one in public],
        ),
        "by_speed": scatter(
            [
                *(
                    _spot(p, p.speed, f"{figure(p.speed)} tokens per second", names)
                    for p in found
                    if p.speed is not None
                ),
                *_dense(base, base.speed if base else None, "tokens per second"),
            ],
            x_title="Decoded tokens per second",
            y_title="Held-out perplexity",
            more_x_is_better=True,
        ),
    }
    return show(request, "frontier.html", context)


def _models(session: Session, tenant_id: str) -> list[str]:
    query = (
        select(Job.model)
        .where(Job.tenant_id == tenant_id, Job.deleted_at.is_(None))
        .group_by(Job.model)
        .order_by(func.max(Job.created_at).desc())
        .limit(MAX_MODELS)
    )
    return list(session.scalars(query))


def _last_measured(session: Session, tenant_id: str) -> str | None:
    query = (
        select(Job.model)
        .join(Checkpoint, Checkpoint.job_id == Job.id)
        .where(Job.tenant_id == tenant_id, Job.deleted_at.is_(None))
        .order_by(Checkpoint.created_at.desc())
        .limit(1)
    )
    return session.scalars(query).one_or_none()


@dataclass(frozen=True)
class Dense:
    """The base model, as the newest job that measured it did; `speed` in tokens per second."""

    params: float
    perplexity: float
    speed: float | None


def _base(session: Session, tenant_id: str, model: str) -> Dense | None:
    measured = aliased(Evaluation)
    query = (
        select(Job.params_start, measured.value, Evaluation.value)
        .join(measured, _measured(measured, Job, PERPLEXITY))
        .outerjoin(Evaluation, _measured(Evaluation, Job, SPEED))
        .where(Job.tenant_id == tenant_id, Job.model == model, Job.params_start.is_not(None))
        .order_by(Evaluation.value.is_(None), Job.created_at.desc())
        .limit(1)
    )
    row = session.execute(query).one_or_none()
    if row is None:
        return None
    params, perplexity, speed = row
    assert params is not None, "the query asks for jobs that know it"
    assert perplexity is not None, "every perplexity has a value"
    return Dense(params, perplexity, speed)


def _measured(table: type[Evaluation], job: type[Job], what: tuple[str, str]) -> Any:
    return and_(
        table.job_id == job.id,
        table.stage == "base",
        table.suite == what[0],
        table.metric == what[1],
        table.value.is_not(None),
    )


def _names(session: Session, job_ids: set[str]) -> dict[str, str]:
    query = select(Job.id, Job.name).where(Job.id.in_(job_ids))
    return {key: name or f"{key[:8]}…{key[-4:]}" for key, name in session.execute(query)}


def _spot(point: Point, x: float, words: str, names: Mapping[str, str]) -> Spot:
    name = f"{names[point.job_id]}, cut {point.increment}"
    label = f"{name}: {words}, perplexity {decimal(point.perplexity)}"
    return Spot(x, point.perplexity, label, f"/jobs/{point.job_id}#row-{point.checkpoint_id}")


def _dense(base: Dense | None, x: float | None, unit: str) -> list[Spot]:
    if base is None or x is None:
        return []
    label = f"base model: {count(x)} {unit}, perplexity {decimal(base.perplexity)}"
    return [Spot(x, base.perplexity, label, None, "base")]
