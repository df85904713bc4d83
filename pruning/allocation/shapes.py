"""Pruning to a given uniform architecture (Sheared-LLaMA's target shape, arXiv 2310.06694)."""

from bisect import bisect_left

from pruning.allocation.accounts import open_accounts, plan_after
from pruning.allocation.depth import without
from pruning.allocation.hidden import keep_hidden
from pruning.allocation.widths import depth_of, hidden_size_of, widths_of
from pruning.errors import TargetUnreachable
from pruning.events import LayerWidths
from pruning.models.geometry import Geometry
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import Axis, Constraints
from pruning.recipe_parts.target import Shape
from pruning.scores import Scores

_STEPS = 4096
"""Into how many parts the way to the shape is divided; an increment ends on one of them."""
_FREE = Constraints(width_multiple=1, min_intermediate_size=1)


def shape_num_parameters(shape: Shape, plan: PruningPlan, geometry: Geometry) -> int:
    """What a model that is now at `plan` counts with the architecture `shape`.

    Raises:
        TargetUnreachable: the model's layers are not alike, or the shape is beyond them.
    """
    now = _common_widths(plan, geometry)
    last, depth = widths_of(shape, now), depth_of(shape, len(plan.living))
    geometry = geometry.narrowed(plan)
    hidden = hidden_size_of(shape, geometry.hidden_size, geometry.hidden_divisor)
    geometry = geometry.narrowed(plan.model_copy(update={"hidden": tuple(range(hidden))}))
    index = plan.living[0]
    group_cost = geometry.kv_group_cost(index, last.num_attention_heads // last.num_key_value_heads)
    layer = (
        geometry.layer_costs[index]
        + last.intermediate_size * geometry.group_costs[index]["intermediate"]
        + last.num_key_value_heads * group_cost
    )
    return geometry.num_fixed_parameters + depth * layer


def shape_plan(
    scores: Scores, plan: PruningPlan, geometry: Geometry, *, shape: Shape, target: int
) -> PruningPlan:
    """The plan on the straight way from `plan` to `shape` that has at most `target` parameters.

    All layers stay alike. `scores` hold one entry per layer of `plan`; the least important groups
    and layers go.

    Raises:
        TargetUnreachable: the model's layers are not alike, or the shape is beyond them.
    """
    now, num_layers = _common_widths(plan, geometry), len(plan.living)
    last, depth = widths_of(shape, now), depth_of(shape, num_layers)
    geometry = geometry.narrowed(plan)
    divisor = geometry.hidden_divisor
    hidden = hidden_size_of(shape, geometry.hidden_size, divisor)

    def plan_at(step: int) -> PruningPlan:
        order = sorted(plan.living, key=lambda i: (scores.layers[i].layer_importance, i))
        fewest = order[: (num_layers - depth) * step // _STEPS]
        shallower = without(plan, [(index, "layer") for index in fewest])
        narrower = _narrowed(scores, shallower, geometry, _between(now, last, step))
        lost = (geometry.hidden_size - hidden) * step // _STEPS
        # On the way in whole multiples, which the architecture may want.
        size = hidden if step == _STEPS else geometry.hidden_size - lost // divisor * divisor
        return narrower if size == geometry.hidden_size else keep_hidden(scores, narrower, size)

    steps = range(_STEPS + 1)
    found = bisect_left(steps, -target, key=lambda step: -geometry.num_parameters(plan_at(step)))
    return plan_at(min(found, _STEPS))


def _between(now: LayerWidths, last: LayerWidths, step: int) -> LayerWidths:
    """Widths after a part of the way: heads in whole groups, the same number in each."""

    def part(start: int, end: int) -> int:
        return start - (start - end) * step // _STEPS

    groups = part(now.num_key_value_heads, last.num_key_value_heads)
    heads = part(
        now.num_attention_heads // now.num_key_value_heads,
        last.num_attention_heads // last.num_key_value_heads,
    )
    return LayerWidths(
        intermediate_size=part(now.intermediate_size, last.intermediate_size),
        num_attention_heads=groups * heads,
        num_key_value_heads=groups,
    )


def _narrowed(
    scores: Scores, plan: PruningPlan, geometry: Geometry, widths: LayerWidths
) -> PruningPlan:
    now = geometry.widths(plan)[0]
    wanted: dict[Axis, tuple[int, int]] = {
        "intermediate": (now.intermediate_size, widths.intermediate_size),
        "kv_group": (now.num_key_value_heads, widths.num_key_value_heads),
        "query_head": (
            now.num_attention_heads // now.num_key_value_heads,
            widths.num_attention_heads // widths.num_key_value_heads,
        ),
    }
    axes = tuple(axis for axis, (before, after) in wanted.items() if after < before)
    accounts = open_accounts(scores, plan, geometry, axes=axes, constraints=_FREE)
    return plan_after(plan, accounts, {(a.layer, a.axis): wanted[a.axis][1] for a in accounts})


def _common_widths(plan: PruningPlan, geometry: Geometry) -> LayerWidths:
    first, *others = geometry.widths(plan)
    if any(layer != first for layer in others):
        raise TargetUnreachable("the model's layers differ in width", param="target.shape")
    return first
