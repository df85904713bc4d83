"""The widths that serving constraints allow an axis of a layer, or that a target shape asks for."""

import math

from pruning.errors import TargetUnreachable
from pruning.events import LayerWidths
from pruning.recipe_parts.method import Axis, Constraints
from pruning.recipe_parts.target import Shape


def allowed_widths(axis: Axis, width: int, constraints: Constraints) -> tuple[int, ...]:
    """Widths below `width` that an axis may be cut to, descending.

    Raises:
        TargetUnreachable: `width` does not divide by `tensor_parallel`, and no allowed width does.
    """
    step, minimum = _step(axis, constraints), _minimum(axis, constraints)
    lowest = math.ceil(minimum / step) * step
    highest = (width - 1) // step * step
    widths = tuple(range(highest, lowest - 1, -step))
    if axis not in ("query_head", "expert") and width % constraints.tensor_parallel and not widths:
        raise TargetUnreachable(
            f"{width} groups of {axis} cannot be divided by tensor_parallel "
            f"{constraints.tensor_parallel}, and no smaller number is allowed",
            param="allocation.constraints.tensor_parallel",
        )
    return widths


def hidden_widths(width: int, divisor: int, constraints: Constraints) -> tuple[int, ...]:
    """Hidden sizes below `width` that serving allows, descending.

    `divisor` is what the architecture wants them to be multiples of.
    """
    step = math.lcm(constraints.hidden_multiple, divisor)
    lowest = math.ceil(constraints.min_hidden_size / step) * step
    return tuple(range((width - 1) // step * step, lowest - 1, -step))


def hidden_size_of(shape: Shape, hidden_size: int, divisor: int) -> int:
    """The hidden size that `shape` asks for, of a model that has `hidden_size`.

    Raises:
        TargetUnreachable: the model has fewer, or the architecture's heads do not divide it.
    """
    found = shape.hidden_size or hidden_size
    if found > hidden_size:
        raise _unreachable("hidden_size", f"the model has {hidden_size}")
    if found % divisor and found != hidden_size:
        raise _unreachable("hidden_size", f"this architecture wants a multiple of {divisor}")
    return found


def _step(axis: Axis, constraints: Constraints) -> int:
    if axis in ("query_head", "expert"):
        return 1
    multiple = constraints.width_multiple if axis == "intermediate" else 1
    return math.lcm(multiple, constraints.tensor_parallel)


def _minimum(axis: Axis, constraints: Constraints) -> int:
    if axis == "intermediate":
        return constraints.min_intermediate_size
    if axis == "query_head":
        return constraints.min_query_heads_per_group
    return constraints.min_experts if axis == "expert" else constraints.min_kv_groups


def widths_of(shape: Shape, base: LayerWidths) -> LayerWidths:
    """The layer that `shape` asks for, of a model whose layers are `base`; absent means unchanged.

    Raises:
        TargetUnreachable: it is wider than the base model, or its heads do not share evenly.
    """
    ratio = base.num_attention_heads // base.num_key_value_heads
    groups = shape.num_key_value_heads or base.num_key_value_heads
    found = LayerWidths(
        intermediate_size=shape.intermediate_size or base.intermediate_size,
        num_attention_heads=shape.num_attention_heads or groups * ratio,
        num_key_value_heads=groups,
    )
    if found.num_attention_heads % groups:
        raise _unreachable("num_attention_heads", f"does not divide by {groups} KV heads")
    if found.num_attention_heads // groups > ratio:
        raise _unreachable("num_attention_heads", f"more than {ratio} query heads for a KV head")
    for name, value in found.model_dump().items():
        if value > getattr(base, name):
            raise _unreachable(name, f"the model has {getattr(base, name)}")
    return found


def depth_of(shape: Shape, num_layers: int) -> int:
    """The number of layers that `shape` asks for.

    Raises:
        TargetUnreachable: the model has fewer.
    """
    depth = shape.num_hidden_layers or num_layers
    if depth > num_layers:
        raise _unreachable("num_hidden_layers", f"the model has {num_layers}")
    return depth


def _unreachable(field: str, why: str) -> TargetUnreachable:
    param = f"target.shape.{field}"
    return TargetUnreachable(f"{param}: {why}", param=param)
