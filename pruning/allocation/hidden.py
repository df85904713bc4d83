"""How narrow the residual stream gets: one width for the whole model, so decided first."""

import torch

from pruning.allocation.widths import hidden_widths
from pruning.errors import InvalidPlan, TargetUnreachable
from pruning.models.geometry import Geometry
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import Constraints
from pruning.scores import Scores


def narrow_stream(
    scores: Scores, plan: PruningPlan, geometry: Geometry, *, target: int, constraints: Constraints
) -> PruningPlan:
    """`plan` with as many hidden channels as the target lets, the least important gone.

    Raises:
        TargetUnreachable: no width that the constraints allow is narrow enough.
        InvalidPlan: hidden channels were not measured.
    """
    sizes = _sizes(plan, geometry, constraints)
    for size in sizes:
        if _count(plan, geometry, size) <= target:
            return keep_hidden(scores, plan, size)
    floor = _count(plan, geometry, sizes[-1])
    raise TargetUnreachable(
        f"the constraints leave at least {floor:,} parameters, the target is {target:,}",
        param="target",
        hint="raise the target, or lower min_hidden_size and hidden_multiple",
        limit=floor,
    )


def balanced_widths(
    plan: PruningPlan,
    geometry: Geometry,
    *,
    target: int,
    constraints: Constraints,
    owed: float,
) -> list[tuple[int, float]]:
    """Hidden sizes to try, the best first, and the channels that are owed after each.

    The best comes closest to what makes stream and layers lose the same share on the way to the
    target, after `owed` channels from before, and leaves the layers something to lose unless a
    whole step is owed. After it, narrower ones, for layers that cannot lose enough.
    """
    sizes = _sizes(plan, geometry, constraints)
    width = sizes[0]

    def imbalance(size: int) -> float:
        narrow = geometry.narrowed(_with_width(plan, size))
        count = narrow.num_parameters(_with_width(plan, size))
        in_layers = count - narrow.num_fixed_parameters
        return abs((1 - size / width) - (count - target) / in_layers)

    ideal = min(range(width, width // 4, -1), key=imbalance)
    wanted = width - ideal + owed
    able = [
        size
        for size in sizes
        if _count(plan, geometry, size) >= target or width - size <= wanted or size == width
    ]
    best = min(able, key=lambda size: abs(width - size - wanted))
    return [(size, wanted - (width - size)) for size in sizes if size <= best]


def _sizes(plan: PruningPlan, geometry: Geometry, constraints: Constraints) -> tuple[int, ...]:
    """Today's hidden size and those it may be cut to, descending."""
    width = geometry.hidden_size if plan.hidden is None else len(plan.hidden)
    return width, *hidden_widths(width, geometry.hidden_divisor, constraints)


def _count(plan: PruningPlan, geometry: Geometry, size: int) -> int:
    return geometry.num_parameters(_with_width(plan, size))


def _with_width(plan: PruningPlan, size: int) -> PruningPlan:
    return plan.model_copy(update={"hidden": tuple(range(size))})


def keep_hidden(scores: Scores, plan: PruningPlan, size: int) -> PruningPlan:
    """`plan` with its `size` most important hidden channels.

    Raises:
        InvalidPlan: hidden channels were not measured, or not those of the plan.
    """
    if scores.hidden is None:
        raise InvalidPlan("no scores of hidden channels")
    channels = range(len(scores.hidden)) if plan.hidden is None else plan.hidden
    if len(channels) != len(scores.hidden):
        raise InvalidPlan(f"{len(scores.hidden)} scores for {len(channels)} hidden channels")
    if size == len(channels):
        return plan
    # Stable, so that ties fall to the lower index on every machine.
    order = torch.argsort(scores.hidden, stable=True).tolist()
    kept = sorted(order[len(channels) - size :])
    return plan.model_copy(update={"hidden": tuple(channels[index] for index in kept)})
