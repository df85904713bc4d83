"""Whole layers and blocks, least important first: the depth of a model.

ShortGPT (arXiv 2403.03853) drops layers; attention and MLP blocks apart: What Matters in
Transformers (arXiv 2406.15786).
"""

from collections.abc import Sequence

from pruning.errors import TargetUnreachable
from pruning.models.geometry import Geometry
from pruning.plan import GONE, PruningPlan
from pruning.recipe_parts.method import Axis, Constraints
from pruning.scores import LayerScores, Scores

DEPTH_AXES: tuple[Axis, ...] = ("layer", "attention_block", "mlp_block")

Piece = tuple[int, Axis]
"""A layer of a plan, and what of it goes."""


def drop_pieces(
    scores: Scores,
    plan: PruningPlan,
    geometry: Geometry,
    *,
    axes: tuple[Axis, ...],
    target: int,
    constraints: Constraints,
) -> PruningPlan:
    """`plan` without the layers or blocks that change the residual stream least for their size.

    At most `target` parameters; one layer, attention block and MLP block always stay. `scores` hold
    one entry per layer of `plan`.

    Raises:
        TargetUnreachable: what must stay is more than the target.
    """
    order = _order(scores, plan, geometry, axes, constraints)
    floor = geometry.num_parameters(without(plan, order))
    if floor > target:
        raise TargetUnreachable(
            f"the constraints leave at least {floor:,} parameters, the target is {target:,}",
            param="target",
            hint="raise the target, or protect fewer layers",
            limit=floor,
        )
    dropped: list[Piece] = []
    for piece in order:
        if geometry.num_parameters(without(plan, dropped)) <= target:
            break
        dropped.append(piece)
    for piece in reversed(dropped):
        # Of unequal sizes, the last one may have made a smaller one before it needless.
        rest = [other for other in dropped if other != piece]
        if geometry.num_parameters(without(plan, rest)) <= target:
            dropped = rest
    return without(plan, dropped)


def without(plan: PruningPlan, dropped: Sequence[Piece]) -> PruningPlan:
    """`plan` with some pieces gone."""
    layers = list(plan.layers)
    for index, axis in dropped:
        if axis == "layer":
            layers[index] = GONE
        elif axis == "attention_block":
            nothing = {"kv_groups": (), "query_heads": ()}
            layers[index] = layers[index].model_copy(update=nothing)
        else:
            layers[index] = layers[index].model_copy(update={"intermediate": (), "experts": ()})
    return plan.with_layers(layers)


def _order(
    scores: Scores,
    plan: PruningPlan,
    geometry: Geometry,
    axes: tuple[Axis, ...],
    constraints: Constraints,
) -> list[Piece]:
    """All pieces that may go, the least importance per parameter first."""
    ranked: list[tuple[float, Piece]] = []
    for axis in axes:
        there = [index for index in plan.living if _has(plan, index, axis)]
        able = [index for index in there if not constraints.protects(index, len(plan.layers))]
        cost = {i: _cost(plan, geometry, (i, axis)) for i in able}
        found = sorted((_importance(scores.layers[i], axis) / cost[i], (i, axis)) for i in able)
        # One always stays.
        ranked += found[:-1] if len(able) == len(there) else found
    return [piece for _, piece in sorted(ranked)]


def _has(plan: PruningPlan, index: int, axis: Axis) -> bool:
    layer = plan.layers[index]
    if axis == "layer":
        return True
    return bool(layer.kv_groups if axis == "attention_block" else layer.intermediate)


def _cost(plan: PruningPlan, geometry: Geometry, piece: Piece) -> int:
    return geometry.num_parameters(plan) - geometry.num_parameters(without(plan, [piece]))


def _importance(scores: LayerScores, axis: Axis) -> float:
    if axis == "layer":
        return scores.layer_importance
    return scores.attention_importance if axis == "attention_block" else scores.mlp_importance
