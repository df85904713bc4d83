"""The widths that serving constraints allow an axis of a layer to have."""

import math

from pruning.errors import TargetUnreachable
from pruning.recipe import Axis, Constraints


def allowed_widths(axis: Axis, width: int, constraints: Constraints) -> tuple[int, ...]:
    """Widths below `width` that an axis may be cut to, descending.

    Raises:
        TargetUnreachable: `width` does not divide by `tensor_parallel`, and no allowed width does.
    """
    step, minimum = _step(axis, constraints), _minimum(axis, constraints)
    lowest = math.ceil(minimum / step) * step
    highest = (width - 1) // step * step
    widths = tuple(range(highest, lowest - 1, -step))
    if axis != "query_head" and width % constraints.tensor_parallel and not widths:
        raise TargetUnreachable(
            f"{width} groups of {axis} cannot be divided by tensor_parallel "
            f"{constraints.tensor_parallel}, and no smaller number is allowed",
            param="allocation.constraints.tensor_parallel",
        )
    return widths


def _step(axis: Axis, constraints: Constraints) -> int:
    if axis == "query_head":
        return 1
    multiple = constraints.width_multiple if axis == "intermediate" else 1
    return math.lcm(multiple, constraints.tensor_parallel)


def _minimum(axis: Axis, constraints: Constraints) -> int:
    if axis == "intermediate":
        return constraints.min_intermediate_size
    if axis == "query_head":
        return constraints.min_query_heads_per_group
    return constraints.min_kv_groups
