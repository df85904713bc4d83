"""Size and speed against quality, over all checkpoints of a base model."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.dashboard.scatter import Spot, scatter
from api.dashboard.units import count, decimal
from api.dashboard.viewing import Viewer, show
from api.deps import ReadSession
from registry import comparisons
from registry.comparisons import Point
from registry.public_models import models_near
from registry.tables import Checkpoint, Evaluation, Job

router = APIRouter(prefix="/frontier")

MAX_MODELS = 100
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
    speeds = _speeds(session, [point.checkpoint_id for point in found])
    names = _names(session, {point.job_id for point in found})
    public = models_near(base[0]) if base else []
    context = {
        "public": public,
        "models": models,
        "model": chosen,
        "points": found,
        "best": best,
        "base": base,
        "speeds": speeds,
        "names": names,
        "by_size": scatter(
            [
                *(_spot(p, float(p.params), p.checkpoint_id in best, names) for p in found),
                *_base_spot(base, f"{count(base[0])} parameters" if base else ""),
            ],
            x_title="Parameters",
            y_title="Held-out perplexity",
            more_x_is_better=False,
            marks=[(float(one.num_parameters), one.name) for one in public],
        ),
        "by_speed": scatter(
            [
                _spot(p, speeds[p.checkpoint_id], p.checkpoint_id in best, names)
                for p in found
                if p.checkpoint_id in speeds
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


def _base(session: Session, tenant_id: str, model: str) -> tuple[int, float] | None:
    """Parameters and perplexity of the base model, as its newest job measured them."""
    query = (
        select(Job.params_start, Evaluation.value)
        .join(Evaluation, Evaluation.job_id == Job.id)
        .where(
            Job.tenant_id == tenant_id,
            Job.model == model,
            Job.params_start.is_not(None),
            Evaluation.stage == "base",
            Evaluation.suite == "perplexity",
            Evaluation.metric == "perplexity",
            Evaluation.value.is_not(None),
        )
        .order_by(Job.created_at.desc())
        .limit(1)
    )
    row = session.execute(query).one_or_none()
    return None if row is None else (int(row[0] or 0), float(row[1] or 0.0))


def _speeds(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, float]:
    query = select(Evaluation.checkpoint_id, Evaluation.value).where(
        Evaluation.checkpoint_id.in_(checkpoint_ids),
        Evaluation.metric == SPEED[1],
        Evaluation.stage == "recovered",
        Evaluation.value.is_not(None),
    )
    return {str(key): float(value or 0.0) for key, value in session.execute(query)}


def _names(session: Session, job_ids: set[str]) -> dict[str, str]:
    query = select(Job.id, Job.name).where(Job.id.in_(job_ids))
    return {key: name or f"{key[:8]}…{key[-4:]}" for key, name in session.execute(query)}


def _spot(point: Point, x: float, best: bool, names: Mapping[str, str]) -> Spot:
    label = (
        f"{names[point.job_id]}, cut {point.increment}: {count(point.params)} parameters, "
        f"perplexity {decimal(point.perplexity)}"
    )
    href = f"/jobs/{point.job_id}#row-{point.checkpoint_id}"
    return Spot(x, point.perplexity, label, href, "best" if best else "beaten")


def _base_spot(base: tuple[int, float] | None, words: str) -> list[Spot]:
    if base is None:
        return []
    label = f"base model: {words}, perplexity {decimal(base[1])}"
    return [Spot(float(base[0]), base[1], label, None, "base")]
