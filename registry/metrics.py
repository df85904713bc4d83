"""Training curves: stored in batches under a fence, read as columns, thinned for drawing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from pruning.events import StepFinished
from registry.column_types import finite
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
        steps = [row["step"] for row in rows]
        heights = [_number(row.get(_shape_key(keys))) for row in rows]
        rows = [rows[index] for index in thin(steps, heights, max_points)]
    return {"step": [row["step"] for row in rows]} | {
        key: [row.get(key) for row in rows] for key in keys
    }


def _shape_key(keys: Sequence[str]) -> str:
    # Tokens only grow, so thinning by them would keep nothing of the look.
    return next((key for key in keys if key != "num_tokens"), "loss")


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
        return list(range(min(count, size)))
    width = (size - 2) / (count - 2)
    kept = [0]
    for bucket in range(count - 2):
        start, middle = int(bucket * width) + 1, int((bucket + 1) * width) + 1
        end = min(int((bucket + 2) * width) + 1, size)
        mean_x = sum(xs[middle:end]) / (end - middle)
        mean_y = sum(ys[middle:end]) / (end - middle)
        kept.append(_farthest(xs, ys, range(start, middle), kept[-1], (mean_x, mean_y)))
    return [*kept, size - 1]


def _farthest(
    xs: Sequence[float],
    ys: Sequence[float],
    candidates: range,
    before: int,
    after: tuple[float, float],
) -> int:
    """The candidate that spans the largest triangle with two given points."""
    before_x, before_y = xs[before], ys[before]
    after_x, after_y = after

    def doubled_area(i: int) -> float:
        return abs(
            (before_x - after_x) * (ys[i] - before_y) - (before_x - xs[i]) * (after_y - before_y)
        )

    return max(candidates, key=doubled_area)


def as_columns(steps: Sequence[StepFinished]) -> Columns:
    """Events as columns; numbers that are not finite become None."""
    return {key: [finite(getattr(step, key)) for step in steps] for key in ("step", *KEYS)}
