"""Whole layers, least important first (ShortGPT, arXiv 2403.03853): the depth of a model."""

from collections.abc import Sequence

from pruning.errors import TargetUnreachable
from pruning.models.geometry import Geometry
from pruning.plan import GONE, PruningPlan
from pruning.recipe import Constraints
from pruning.scores import Scores


def drop_layers(
    scores: Scores, plan: PruningPlan, geometry: Geometry, *, target: int, constraints: Constraints
) -> PruningPlan:
    """`plan` without the layers that change the residual stream least, at most `target` parameters.

    One layer always stays. `scores` hold one entry per layer of `plan`.

    Raises:
        TargetUnreachable: the layers that must stay are more than the target.
    """
    order = sorted(
        (i for i in plan.living if not constraints.protects(i, len(plan.layers))),
        key=lambda index: (scores.layers[index].layer_importance, index),
    )
    if len(order) == len(plan.living):
        order = order[:-1]
    floor = geometry.num_parameters(without(plan, order))
    if floor > target:
        raise TargetUnreachable(
            f"the constraints leave at least {floor:,} parameters, the target is {target:,}",
            param="target",
            hint="raise the target, or protect fewer layers",
            limit=floor,
        )
    dropped: list[int] = []
    for index in order:
        if geometry.num_parameters(without(plan, dropped)) <= target:
            break
        dropped.append(index)
    for index in reversed(dropped):
        # Layers of unequal size: the last one may have made a smaller one before it needless.
        rest = [other for other in dropped if other != index]
        if geometry.num_parameters(without(plan, rest)) <= target:
            dropped = rest
    return without(plan, dropped)


def without(plan: PruningPlan, dropped: Sequence[int]) -> PruningPlan:
    """`plan` with the layers `dropped` gone."""
    return PruningPlan(
        layers=tuple(GONE if i in dropped else layer for i, layer in enumerate(plan.layers))
    )
