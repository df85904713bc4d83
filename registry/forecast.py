"""What perplexity a size will cost, foretold from the tenant's own runs, with an interval.

The loss that a run adds to its base model's, in nats per token, is fitted over the share of
parameters removed, the training tokens and the model's size. The interval is the jackknife+
(Barber et al., arXiv 1905.02928) with whole jobs left out, since the increments of one job are
alike: it assumes no distribution, and says what the fit has really been off by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, select
from sqlalchemy.orm import Session, aliased

from registry.tables import Evaluation, Increment, Job

INTERVAL = 0.8
"""Share of the runs that the interval is meant to hold."""
MIN_JOBS = 5
"""With fewer, what is left out is too much of what is known."""
_MAX_JOBS = 60
_RIDGE = 1e-3
_BEYOND = 1.25
"""How much further than any past run a forecast goes."""


@dataclass(frozen=True, kw_only=True)
class PastPoint:
    """One increment of a past job: what it removed, trained on, and how much loss that left.

    `added_loss` is log(perplexity / the base model's), `removed` the share of all parameters.
    """

    job_id: str
    method: str
    trained: bool
    removed: float
    num_tokens: int
    base_num_parameters: int
    added_loss: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Perplexity over that of the base model, expected and within `INTERVAL`, or why not.

    `same_method` says whether only runs of the same method were fitted.
    """

    ratio: float | None
    low: float | None
    high: float | None
    num_jobs: int
    same_method: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The run to foretell."""

    method: str
    trained: bool
    removed: float
    num_tokens: int | None
    base_num_parameters: int


def past_points(session: Session, tenant_id: str) -> list[PastPoint]:
    """The measured increments of the tenant's newest jobs."""
    base = aliased(Evaluation)
    recent = (
        select(Job.id)
        .where(Job.tenant_id == tenant_id, Job.deleted_at.is_(None), Job.increments_done > 0)
        .order_by(Job.created_at.desc(), Job.id.desc())
        .limit(_MAX_JOBS)
    )
    query = (
        select(Job, Evaluation, base.value)
        .join(Evaluation, and_(Evaluation.job_id == Job.id, _perplexity(Evaluation, "recovered")))
        .join(base, and_(base.job_id == Job.id, _perplexity(base, "base")))
        .where(Job.id.in_(recent), Evaluation.checkpoint_id.is_not(None))
        .order_by(Job.created_at, Job.id, Evaluation.increment)
    )
    sizes = _sizes(session, recent)
    found = [
        _point(job, row, base_value, sizes.get((job.id, row.increment)))
        for job, row, base_value in session.execute(query)
    ]
    return [point for point in found if point is not None]


def _perplexity(table: Any, stage: str) -> Any:
    return and_(table.suite == "perplexity", table.metric == "perplexity", table.stage == stage)


def _sizes(session: Session, jobs: Any) -> dict[tuple[str, int], int]:
    query = select(Increment.job_id, Increment.idx, Increment.params_after)
    rows = session.execute(query.where(Increment.job_id.in_(jobs)))
    return {(job_id, index): params for job_id, index, params in rows}


def _point(job: Job, row: Evaluation, base: float | None, params: int | None) -> PastPoint | None:
    if not (job.params_start and params and base and row.value):
        return None
    return PastPoint(
        job_id=job.id,
        method=str(job.recipe.get("method")),
        trained=row.num_tokens > 0,
        removed=1 - params / job.params_start,
        num_tokens=row.num_tokens,
        base_num_parameters=job.params_start,
        added_loss=math.log(row.value / base),
    )


def forecast(points: Sequence[PastPoint], wanted: Wanted) -> Forecast:
    """The ratio expected of a run, from runs of its method where there are enough of them."""
    used, same_method = _grounds(points, wanted.method, wanted.trained)
    reason = _why_not(used, wanted)
    if reason is not None:
        return Forecast(
            ratio=None,
            low=None,
            high=None,
            num_jobs=_num_jobs(used),
            same_method=same_method,
            reason=reason,
        )
    features = _features(wanted.removed, wanted.num_tokens or 0, wanted.base_num_parameters)
    expected, low, high = _interval(used, features)
    return Forecast(
        ratio=math.exp(expected),
        low=math.exp(low),
        high=math.exp(high),
        num_jobs=_num_jobs(used),
        same_method=same_method,
        reason=None,
    )


def _grounds(
    points: Sequence[PastPoint], method: str, trained: bool
) -> tuple[list[PastPoint], bool]:
    """What a forecast is fitted to, and whether that is runs of its own method alone."""
    alike = [point for point in points if (point.method, point.trained) == (method, trained)]
    same_method = _num_jobs(alike) >= MIN_JOBS
    return alike if same_method else list(points), same_method


def _why_not(points: Sequence[PastPoint], wanted: Wanted) -> str | None:
    if wanted.num_tokens is None:
        return "how many tokens it would train on is not known before it runs"
    if (known := _num_jobs(points)) < MIN_JOBS:
        return f"{known} past jobs were measured, a forecast takes {MIN_JOBS}"
    furthest = max(point.removed for point in points)
    if wanted.removed > _BEYOND * furthest:
        return f"no past job removed more than {furthest:.0%} of the parameters"
    return None


def coverage(points: Sequence[PastPoint]) -> tuple[int, int]:
    """How many increments an interval from the other jobs holds, of how many it was tried on.

    Each is foretold as it would have been: from runs of its method where the others are enough.
    """
    covered = tried = 0
    for point in points:
        others = [other for other in points if other.job_id != point.job_id]
        used, _ = _grounds(others, point.method, point.trained)
        if _num_jobs(used) < MIN_JOBS:
            continue
        _, low, high = _interval(used, _features_of(point))
        tried += 1
        covered += low <= point.added_loss <= high
    return covered, tried


def _num_jobs(points: Sequence[PastPoint]) -> int:
    return len({point.job_id for point in points})


# --- the fit: features [points, features], losses [points] ----------------------------------------


def _features(removed: float, num_tokens: int, num_parameters: int) -> NDArray[np.float64]:
    """Nothing removed and nothing trained adds no loss: there is no constant."""
    tokens = math.log10(1 + num_tokens / 1e6)
    size = math.log10(num_parameters / 1e8)
    return np.array([removed, removed**2, removed * tokens, tokens, removed * size])


def _features_of(point: PastPoint) -> NDArray[np.float64]:
    return _features(point.removed, point.num_tokens, point.base_num_parameters)


def _fit(features: NDArray[np.float64], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ridge regression: with few points some features cannot be told apart."""
    gram = features.T @ features + _RIDGE * np.eye(features.shape[1])
    return np.asarray(np.linalg.solve(gram, features.T @ losses))


def _interval(
    points: Sequence[PastPoint], wanted: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Expected added loss and the ends of its jackknife+ interval."""
    features = np.stack([_features_of(point) for point in points])
    losses = np.array([point.added_loss for point in points])
    jobs = np.array([point.job_id for point in points])
    lows, highs = [], []
    for job_id in dict.fromkeys(jobs.tolist()):
        out = jobs == job_id
        weights = _fit(features[~out], losses[~out])
        misses = np.abs(losses[out] - features[out] @ weights)
        lows += list(wanted @ weights - misses)
        highs += list(wanted @ weights + misses)
    outside = (1 - INTERVAL) * (len(points) + 1)
    rank = max(math.floor(outside), 1)
    expected = float(wanted @ _fit(features, losses))
    return expected, float(sorted(lows)[rank - 1]), float(sorted(highs)[len(points) - rank])
