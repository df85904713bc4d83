"""The estimate of a request with what the tenant's past jobs foretell: its time, its quality."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from api.estimates import Foretold, read_estimate
from api.schemas.estimates import EstimateRead, ForecastRead
from pruning.estimate import Estimate
from pruning.recipe import Recipe
from registry.estimates import find_pace

if TYPE_CHECKING:
    from registry.forecast import PastPoint


def estimate_with_history(
    session: Session, tenant_id: str, recipe: Recipe, foretold: Foretold
) -> EstimateRead:
    """The estimate as it is answered."""
    # Only here and below: most requests foretell nothing, and numpy takes 11 MB.
    from registry.forecast import past_points

    return read_estimate(
        foretold,
        find_pace(session, tenant_id),
        _forecasts(recipe, foretold.estimate, past_points(session, tenant_id)),
    )


def _forecasts(
    recipe: Recipe, estimate: Estimate, points: Sequence["PastPoint"]
) -> list[ForecastRead]:
    """What quality to expect of each target, with how often such intervals have held."""
    from registry.forecast import coverage

    held, tried = coverage(points)
    return [_forecast(recipe, estimate, points, target, held, tried) for target in estimate.targets]


def _forecast(
    recipe: Recipe,
    estimate: Estimate,
    points: Sequence["PastPoint"],
    target: int,
    held: int,
    tried: int,
) -> ForecastRead:
    from registry.forecast import INTERVAL, Wanted, forecast

    wanted = Wanted(
        method=recipe.method,
        trained=recipe.recovery.kind != "none",
        removed=1 - target / estimate.num_parameters,
        num_tokens=_tokens_until(recipe, estimate, target),
        base_num_parameters=estimate.num_parameters,
    )
    found = forecast(points, wanted)
    return ForecastRead(
        params=target,
        ratio=found.ratio,
        ratio_low=found.low,
        ratio_high=found.high,
        interval=INTERVAL,
        jobs=found.num_jobs,
        same_method=found.same_method,
        held=held,
        tried=tried,
        reason=found.reason,
    )


def _tokens_until(recipe: Recipe, estimate: Estimate, target: int) -> int | None:
    """Training tokens until a target is reached, shared evenly over the increments."""
    if recipe.recovery.kind == "none":
        return 0
    if estimate.num_tokens is None:
        return None
    reached = sum(size > target for size in estimate.increments) + 1
    return round(estimate.num_tokens * min(reached / len(estimate.increments), 1.0))
