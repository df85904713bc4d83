"""Training curves: stored in batches under a fence, read as columns, thinned for drawing."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.db import database_now, insert_unless_exists
from registry.tables import MetricPoint

KEYS = ("num_tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "increment")
"""What every step carries, beside its number."""

Columns = dict[str, list[Any]]


def append(session: Session, job_id: str, fence: int, columns: Columns) -> None:
    """Store consecutive steps: `columns["step"]` ascending, every other list of the same length."""
    steps = columns["step"]
    if not steps:
        return
    values = {
        "job_id": job_id,
        "fence": fence,
        "first_step": steps[0],
        "last_step": steps[-1],
        "columns": columns,
        "created_at": database_now(session),
    }
    # A batch that is sent again after a lost answer from the database is the same batch.
    insert_unless_exists(session, MetricPoint, values)


def columns(
    session: Session,
    job_id: str,
    keys: Sequence[str] = KEYS,
    from_step: int = 0,
    max_points: int = 1000,
) -> Columns:
    """The steps from `from_step` on, one list per key and one of step numbers.

    Steps that a later lease ran again, and what the lost execution had run beyond them, are
    replaced. Above `max_points` the curve is thinned to the points that keep the look of its first
    key.
    """
    query = (
        select(MetricPoint.columns)
        .where(MetricPoint.job_id == job_id, MetricPoint.last_step >= from_step)
        .order_by(MetricPoint.fence.desc(), MetricPoint.first_step.desc())
    )
    rows = _newest_first(session.scalars(query), from_step)
    rows.reverse()
    if len(rows) > max_points:
        key = keys[0] if keys[0] != "num_tokens" or len(keys) == 1 else keys[1]
        kept = thin([row["step"] for row in rows], [_number(row.get(key)) for row in rows],
        max_points) rows = [rows[index] for index in kept]
    return {"step": [row["step"] for row in rows]} | {
        key: [row.get(key) for row in rows] for key in keys
    }


def _newest_first(batches: Any, from_step: int) -> list[dict[str, Any]]:
    """Steps in falling order; batches come newest lease first, each lease from its end."""
    rows: list[dict[str, Any]] = []
    lowest: int | None = None
    for batch in batches:
        for index in range(len(batch["step"]) - 1, -1, -1):
            step = batch["step"][index]
            if step >= from_step and (lowest is None or step < lowest):
                rows.append({key: values[index] for key, values in batch.items()})
                lowest = step
    return rows


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def thin(xs: Sequence[float], ys: Sequence[float], count: int) -> list[int]:
    """Indices of `count` points that keep the look of a curve.

    Largest-triangle-three-buckets: of each bucket the point that spans the largest triangle with
    the point kept before and the mean of the next bucket (Steinarsson 2013, section 4.2).
    """
    size = len(xs)
    if count >= size or count < 3:
        return list(range(size))[: max(count, 0)] if count < size else list(range(size))
    width = (size - 2) / (count - 2)
    kept = [0]
    for bucket in range(count - 2):
        start, middle = int(bucket * width) + 1, int((bucket + 1) * width) + 1
        end = min(int((bucket + 2) * width) + 1, size)
        mean_x = sum(xs[middle:end]) / (end - middle)
        mean_y = sum(ys[middle:end]) / (end - middle)
        before_x, before_y = xs[kept[-1]], ys[kept[-1]]
        kept.append(
            max(
                range(start, middle),
                key=lambda i, ax=before_x, ay=before_y, cx=mean_x, cy=mean_y: abs(
                    (ax - cx) * (ys[i] - ay) - (ax - xs[i]) * (cy - ay)
                ),
            )
        )
    return [*kept, size - 1]


def as_columns(steps: Sequence[Mapping[str, Any]]) -> Columns:
    """Rows with `step` and the keys above, as columns."""
    return {key: [step.get(key) for step in steps] for key in ("step", *KEYS)}
