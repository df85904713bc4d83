"""Reading many jobs side by side: their sizes and qualities, and where their recipes differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from registry.tables import Checkpoint, Evaluation, Job

MAX_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class Point:
    """A checkpoint as size and held-out perplexity."""

    checkpoint_id: str
    job_id: str
    increment: int
    params: int
    size_bytes: int
    perplexity: float
    base_perplexity: float | None


def points(
    session: Session, tenant_id: str, *, model: str | None = None, job_ids: Sequence[str] = ()
) -> list[Point]:
    """The measured checkpoints of a base model, or of some jobs, smallest first."""
    base = select(Evaluation).where(_perplexity(Evaluation, "base")).subquery()
    query = (
        select(Checkpoint, Evaluation.value, base.c.value)
        .join(Job, Job.id == Checkpoint.job_id)
        .join(
            Evaluation,
            and_(
                Evaluation.job_id == Checkpoint.job_id,
                Evaluation.increment == Checkpoint.increment,
                _perplexity(Evaluation, "recovered"),
            ),
        )
        .outerjoin(base, base.c.job_id == Checkpoint.job_id)
        .where(
            Checkpoint.tenant_id == tenant_id,
            Job.deleted_at.is_(None),
            Evaluation.value.is_not(None),
        )
        .order_by(Checkpoint.params, Checkpoint.id)
        .limit(MAX_POINTS)
    )
    if model is not None:
        query = query.where(Job.model == model)
    if job_ids:
        query = query.where(Checkpoint.job_id.in_(job_ids))
    return [
        Point(
            checkpoint_id=row.id,
            job_id=row.job_id,
            increment=row.increment,
            params=row.params,
            size_bytes=row.size_bytes,
            perplexity=value,
            base_perplexity=base_value,
        )
        for row, value, base_value in session.execute(query)
        if value is not None
    ]


def _perplexity(table: type[Evaluation], stage: str) -> Any:
    return and_(table.suite == "perplexity", table.metric == "perplexity", table.stage == stage)


def frontier(found: Sequence[Point]) -> set[str]:
    """The checkpoints that no other beats in both size and perplexity."""
    best = float("inf")
    kept = set()
    for point in sorted(found, key=lambda point: (point.params, point.perplexity)):
        if point.perplexity < best:
            best = point.perplexity
            kept.add(point.checkpoint_id)
    return kept


def differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The fields in which recipes differ, by dotted name, one value per recipe."""
    flat = [dict(_flatten(recipe)) for recipe in recipes]
    names = sorted({name for fields in flat for name in fields})
    columns = {name: [fields.get(name) for fields in flat] for name in names}
    return {
        name: values
        for name, values in columns.items()
        if any(value != values[0] for value in values)
    }


def _flatten(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        parts = {str(index): item for index, item in enumerate(value)}.items()
    else:
        return [(name, value)]
    below = f"{name}." if name else ""
    return [pair for key, part in parts for pair in _flatten(part, f"{below}{key}")]
