"""When to cut to what size, and how many optimizer steps follow each cut. Pure."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pruning.errors import TargetUnreachable
from pruning.recipe import Recipe
from pruning.recipe_parts.method import Axis, Schedule
from pruning.recipe_parts.target import Shape, Target

BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2, "float16": 2}
_MIN_INCREMENTS = 3
_SHARE_PER_INCREMENT = 0.07
_ROUNDING = 1e-4
_LARGEST_REPAIRED = 0.2
"""The most that a cut takes of what it can take from, where repair is all that follows it."""

TokenShare = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Increment:
    """One prune-then-recover cycle, counted from 1.

    Where the schedule prunes while it trains, it does so until `pruning_until_step`.
    """

    number: int
    target_num_parameters: int
    from_step: int
    pruning_until_step: int
    until_step: int


def resolve_target(
    target: Target,
    *,
    num_parameters: int,
    num_prunable_parameters: int,
    dtype: str,
    shaped: Callable[[Shape], int],
    outside: Callable[[float], int] | None = None,
) -> int:
    """The number of parameters that a target means for one model; `shaped` counts those of a shape.

    `outside` counts what is outside the decoder layers at a sparsity of them: less, where hidden
    channels go, than there is (the default).

    Raises:
        TargetUnreachable: it is larger than the model, or a shape beyond its own.
    """
    if target.shape is not None:
        return shaped(target.shape)
    if target.num_parameters is not None:
        resolved = target.num_parameters
    elif target.sparsity is not None:
        kept = num_prunable_parameters - round(target.sparsity * num_prunable_parameters)
        around = num_parameters - num_prunable_parameters
        resolved = kept + (around if outside is None else outside(target.sparsity))
    else:
        resolved = (target.size_bytes or 0) // BYTES_PER_PARAMETER[dtype]
    if resolved > num_parameters:
        raise TargetUnreachable(
            f"the target of {resolved:,} parameters is above the model's {num_parameters:,}",
            param="target",
            limit=num_parameters,
        )
    return resolved


def stream_share(axes: Collection[Axis], sparsity: float, shortcuts: float = 0.0) -> float:
    """The share of hidden channels left when the decoder layers have lost `sparsity`.

    Layers shrink with the stream, and again with their own axes, which then lose as large a share.
    `shortcuts` is how large those between blocks would be at full width, as a share of the layers.
    """
    if "hidden" not in axes or sparsity == 0:
        return 1.0
    if shortcuts:
        return (math.sqrt(1 + 4 * shortcuts * (1 - sparsity)) - 1) / (2 * shortcuts)
    return 1 - sparsity if len(axes) == 1 else math.sqrt(1 - sparsity)


def repaired_from(
    recipe: Recipe, *, num_parameters: int, num_prunable_parameters: int
) -> int | None:
    """The parameters that cuts can take from, if they are repaired and nothing trains; else None.

    They are those of the decoder layers, or of the whole model where hidden channels go.
    """
    if recipe.recovery.kind != "none" or recipe.compensation == "none":
        return None
    return num_parameters if recipe.narrows_stream else num_prunable_parameters


def plan_increments(
    *,
    num_parameters: int,
    targets: Sequence[int],
    total_steps: int,
    schedule: Schedule,
    repaired_from: int | None = None,
) -> tuple[Increment, ...]:
    """Every size to pass on the way to the smallest target, in equal cuts between two targets.

    Each target is the size of some increment, so that a family's checkpoints are simply those.
    Where nothing trains and cuts are repaired, `repaired_from` parameters can be cut at all: unless
    the schedule says how many, cuts then take equal shares of what is left of those, none of them
    more than a fifth.
    """
    targets = sorted(set(targets), reverse=True)
    if schedule.num_increments is None and repaired_from is not None:
        sizes = _repaired_sizes(num_parameters, targets, num_parameters - repaired_from)
    else:
        sizes = _sizes(num_parameters, targets, schedule.num_increments)
    bounds = _step_bounds(schedule.token_share, len(sizes), total_steps)
    return tuple(
        Increment(
            number=number,
            target_num_parameters=size,
            from_step=start,
            pruning_until_step=start + _pruning_steps(schedule, end - start),
            until_step=end,
        )
        for number, (size, (start, end)) in enumerate(
            zip(sizes, pairwise(bounds), strict=True), start=1
        )
    )


def _pruning_steps(schedule: Schedule, num_steps: int) -> int:
    if schedule.kind == "staged":
        return 0
    return min(num_steps, max(1, round(schedule.pruning_share * num_steps)))


def _sizes(num_parameters: int, targets: Sequence[int], num_increments: int | None) -> list[int]:
    removed = num_parameters - targets[-1]
    if num_increments is None:
        automatic = math.ceil(removed / num_parameters / _SHARE_PER_INCREMENT)
        num_increments = max(_MIN_INCREMENTS, automatic)
    sizes: list[int] = []
    start = num_parameters
    for target in targets:
        share = (start - target) / removed if removed else 1.0
        pieces = max(1, round(num_increments * share))
        sizes += [start - (start - target) * i // pieces for i in range(1, pieces + 1)]
        start = target
    return sizes


def _repaired_sizes(num_parameters: int, targets: Sequence[int], num_fixed: int) -> list[int]:
    sizes: list[int] = []
    left = num_parameters - num_fixed
    for target in targets:
        # A target below what can be reached is refused when its first cut is decided.
        share = max(target - num_fixed, 1) / left
        pieces = max(1, math.ceil(math.log(share) / math.log(1 - _LARGEST_REPAIRED) - _ROUNDING))
        sizes += [num_fixed + round(left * share ** (i / pieces)) for i in range(1, pieces)]
        sizes.append(target)
        left = max(target - num_fixed, 1)
    return sizes


def _step_bounds(share: TokenShare, num_increments: int, total_steps: int) -> list[int]:
    """Steps done before the first and after each increment; they sum exactly."""
    return [
        round(total_steps * _cumulative_share(share, i / num_increments, num_increments))
        for i in range(num_increments + 1)
    ]


def _cumulative_share(share: TokenShare, progress: float, num_increments: int) -> float:
    """Adapt-Pruner's data split: linear gives increment i of T the share 2i / (T (T + 1))."""
    if share == "constant":
        return progress
    if share == "cosine":
        return 1 - math.cos(progress * math.pi / 2)
    i = round(progress * num_increments)
    return i * (i + 1) / (num_increments * (num_increments + 1))
