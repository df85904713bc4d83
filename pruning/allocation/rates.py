"""How fast each block loses parameters relative to the others: pure functions of importance."""

import math
from collections.abc import Sequence
from statistics import fmean, median, pstdev

from pruning.recipe_parts.method import Axis

# Blocks that leave the residual stream untouched would take the logarithm to minus infinity.
_LEAST_IMPORTANCE = 1e-6
_OUTLIER_DEVIATIONS = 3.0
# Median absolute deviation of a normal distribution with standard deviation 1.
_NORMAL_MAD = 0.6745

AXIS_RATES: dict[Axis, float] = {
    "intermediate": 1.0,
    "kv_group": 0.2,
    "query_head": 0.2,
    "expert": 1.0,
}
"""How fast an axis loses parameters beside the others; within an axis, importance decides.

First-order importance does not see that the entries of a KV group act together: on SmolLM2-135M at
20 % removed, parameters taken as KV groups cost about five times the loss of those taken as
channels.
"""


def normalise(importances: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Layer importances as deviations in [-1, 1], of weighted mean 0, that no outlier dominates.

    On a logarithmic scale, since 1 - cos spans orders of magnitude; values beyond three (robust)
    standard deviations of the median are pulled in to there before the largest sets the scale.
    """
    logs = [math.log(max(value, _LEAST_IMPORTANCE)) for value in importances]
    middle = median(logs)
    spread = median(abs(value - middle) for value in logs) / _NORMAL_MAD
    reach = _OUTLIER_DEVIATIONS * spread
    pulled = [min(max(value, middle - reach), middle + reach) for value in logs]
    mean = fmean(pulled, weights)
    scale = max(abs(value - mean) for value in pulled)
    # Equal blocks differ by rounding alone.
    return [(value - mean) / scale if scale > 1e-9 else 0.0 for value in pulled]


def layer_adaptive_rates(
    importances: Sequence[float], weights: Sequence[float], amplitude: float
) -> list[float]:
    """Relative sparsity 1 - A * I of each block (Adapt-Pruner, 2502.03460: S = S_base - A * I).

    `weights` are the blocks' parameters, so that the weighted mean rate is 1 before any clipping.
    """
    return [1 - amplitude * value for value in normalise(importances, weights)]


def fluctuations(blocks: Sequence[Sequence[float]]) -> list[float]:
    """How much the importance of groups fluctuates within each block, 1 in the mean over blocks.

    SAAP (2412.15127) takes more from blocks in which it hardly does.
    """
    # What may not go at all has infinite importance.
    deviations = [pstdev([v for v in values if math.isfinite(v)] or [0.0]) for values in blocks]
    mean = fmean(deviations)
    return [value / mean if mean > 0 else 1.0 for value in deviations]
