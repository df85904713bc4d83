"""Reading many jobs side by side: their sizes and qualities, and where their recipes differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from registry.tables import Checkpoint, Evaluation, Job

MAX_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class Point:
    """A checkpoint as size, held-out perplexity and, where it was measured, speed.

    `speed` is in decoded tokens per second; `speed_protocol` says how, so that only like is
    compared.
    """

    checkpoint_id: str
    job_id: str
    increment: int
    params: int
    size_bytes: int
    perplexity: float
    base_perplexity: float | None
    speed: float | None = None
    speed_protocol: str | None = None


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
    speeds = _speeds(session, tenant_id)
    return [
        Point(
            checkpoint_id=row.id,
            job_id=row.job_id,
            increment=row.increment,
            params=row.params,
            size_bytes=row.size_bytes,
            perplexity=value,
            base_perplexity=base_value,
            **speeds.get(row.id, {}),
        )
        for row, value, base_value in session.execute(query)
        if value is not None
    ]


def _perplexity(table: type[Evaluation], stage: str) -> Any:
    return and_(table.suite == "perplexity", table.metric == "perplexity", table.stage == stage)


def _speeds(session: Session, tenant_id: str) -> dict[str, dict[str, Any]]:
    query = (
        select(Evaluation)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .where(
            Checkpoint.tenant_id == tenant_id,
            Evaluation.suite == "speed",
            Evaluation.metric == "decode_tokens_per_second",
            Evaluation.stage == "recovered",
            Evaluation.value.is_not(None),
        )
    )
    return {
        str(row.checkpoint_id): {
            "speed": row.value,
            "speed_protocol": json.dumps(row.protocol, sort_keys=True),
        }
        for row in session.scalars(query)
    }


def frontier(found: Sequence[Point]) -> set[str]:
    """The checkpoints that no other beats in size, perplexity and speed."""
    return {
        point.checkpoint_id
        for point in found
        if not any(_beats(other, point) for other in found if other is not point)
    }


def _beats(other: Point, point: Point) -> bool:
    """At least as good in everything that was measured of both alike, and better in something."""
    gains = [point.params - other.params, point.perplexity - other.perplexity]
    alike = other.speed_protocol == point.speed_protocol
    if alike and other.speed is not None and point.speed is not None:
        gains.append(other.speed - point.speed)
    return min(gains) >= 0 and (max(gains) > 0 or other.checkpoint_id < point.checkpoint_id)


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
