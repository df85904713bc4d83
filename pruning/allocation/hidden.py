"""How narrow the residual stream gets: one width for the whole model, so decided first."""

import torch

from pruning.allocation.widths import hidden_widths
from pruning.errors import InvalidPlan, TargetUnreachable
from pruning.models.geometry import Geometry
from pruning.plan import PruningPlan
from pruning.recipe import Constraints
from pruning.scores import Scores


def narrow_stream(
    scores: Scores,
    plan: PruningPlan,
    geometry: Geometry,
    *,
    target: int,
    constraints: Constraints,
    alone: bool,
) -> PruningPlan:
    """`plan` with fewer hidden channels, the least important gone.

    `alone`, as many stay as the target lets. Else other axes follow, and the stream loses the share
    of its channels that they will lose of their groups.

    Raises:
        TargetUnreachable: no width that the constraints allow is narrow enough.
        InvalidPlan: hidden channels were not measured.
    """
    width = geometry.hidden_size if plan.hidden is None else len(plan.hidden)
    sizes = (width, *hidden_widths(width, geometry.hidden_divisor, constraints))
    counts = {size: geometry.num_parameters(keep_hidden(scores, plan, size)) for size in sizes}
    if not alone:
        return keep_hidden(scores, plan, _balanced(counts, geometry, plan, target))
    enough = [size for size in sizes if counts[size] <= target]
    if not enough:
        floor = counts[sizes[-1]]
        raise TargetUnreachable(
            f"the constraints leave at least {floor:,} parameters, the target is {target:,}",
            param="target",
            hint="raise the target, or lower min_hidden_size and hidden_multiple",
            limit=floor,
        )
    return keep_hidden(scores, plan, enough[0])


def _balanced(counts: dict[int, int], geometry: Geometry, plan: PruningPlan, target: int) -> int:
    """The width at which stream and layers lose the same share on the way to the target."""
    width = max(counts)

    def imbalance(size: int) -> float:
        narrow = geometry.narrowed(plan.model_copy(update={"hidden": tuple(range(size))}))
        in_layers = counts[size] - narrow.num_fixed_parameters
        return abs((1 - size / width) - (counts[size] - target) / in_layers)

    return min(counts, key=imbalance)


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
