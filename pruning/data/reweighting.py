"""Dynamic batch loading: mixture weights that follow the domains' losses (arXiv 2310.06694). Pure.

Unlike in the released code, a domain below its reference is not
pushed towards nothing (the excess is clamped at 0, as in the paper's text), and no update moves a
weight further than a cap, so that one noisy evaluation cannot turn the mixture over.
"""

import math
from collections.abc import Mapping

from pruning.recipe_parts.data import Mixture


def updated_weights(
    weights: Mapping[str, float],
    losses: Mapping[str, float],
    references: Mapping[str, float],
    mixture: Mixture,
) -> dict[str, float]:
    """The next weights, summing to 1: w exp(step_size x max(loss - reference, 0)), normalised.

    A domain without a finite loss or without a reference keeps its place among the others.
    """
    excess = {name: _excess(losses.get(name), references.get(name)) for name in weights}
    # Only differences matter, and exp of a large one would overflow.
    largest = max(excess.values())
    raw = {
        name: weight * math.exp(mixture.step_size * (excess[name] - largest))
        for name, weight in weights.items()
    }
    scale = (1 - mixture.smoothing) / sum(raw.values())
    even = mixture.smoothing / len(raw)
    wanted = {name: value * scale + even for name, value in raw.items()}
    return _capped(weights, wanted, mixture.max_change)


def _excess(loss: float | None, reference: float | None) -> float:
    if loss is None or reference is None or not math.isfinite(loss):
        return 0.0
    return max(loss - reference, 0.0)


def _capped(
    weights: Mapping[str, float], wanted: Mapping[str, float], max_change: float
) -> dict[str, float]:
    """As far towards `wanted` as no weight changes by more than `max_change`; the sum stays."""
    furthest = max(abs(wanted[name] - weights[name]) for name in weights)
    share = min(1.0, max_change / furthest) if furthest else 1.0
    return {name: w + share * (wanted[name] - w) for name, w in weights.items()}
