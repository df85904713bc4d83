"""What calibration measured: the only thing importance hands to allocation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from pruning.errors import InvalidPlan
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import Axis


@dataclass(frozen=True)
class Removal:
    """The order in which a block's groups are best removed, where their importance is not enough.

    `order` [N] lists all groups, the first to go first; `costs` [N] follows it: what each costs
    once those before it are gone, infinite for those that cannot go.
    """

    order: torch.Tensor
    costs: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """Importance of one decoder layer's groups, and of its two blocks; higher means keep.

    Groups are counted in the model as it was measured: `intermediate` [F], `kv_groups` [K] and
    `query_heads` [K, R] (R in each KV group), fp32 on the CPU. A block's importance is the mean
    over tokens of 1 - cos(residual stream in, out), or what losing all of it costs.
    """

    intermediate: torch.Tensor
    kv_groups: torch.Tensor
    query_heads: torch.Tensor
    attention_importance: float
    mlp_importance: float
    layer_importance: float = 0.0
    """Of the whole layer; ShortGPT's block influence."""
    experts: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """[E], of a layer whose MLP is one of experts."""
    input_means: Mapping[Axis, torch.Tensor] = field(default_factory=dict)
    """Where asked for, by block, the mean over tokens [C] of what enters its output projection."""
    deviations: Mapping[Axis, float] = field(default_factory=dict)
    """What FLAP's z-scores divide by, where not the deviation of the groups' importance: that of
    the channels whose importance a group sums up, on the scale of the group."""
    removals: Mapping[Axis, Removal] = field(default_factory=dict)

    def of_groups(self, axis: Axis) -> torch.Tensor:
        """Importance of the channels, experts or KV groups."""
        if axis == "expert":
            return self.experts
        return self.intermediate if axis == "intermediate" else self.kv_groups

    def block_importance(self, axis: Axis) -> float:
        """`layer_importance` of the block that `axis` thins out."""
        in_mlp = axis in ("intermediate", "expert")
        return self.mlp_importance if in_mlp else self.attention_importance


@dataclass(frozen=True)
class Scores:
    """One `LayerScores` per decoder layer, in order."""

    layers: tuple[LayerScores, ...]
    hidden: torch.Tensor | None = None
    """Importance of each channel of the residual stream [D], where asked for."""

    def over(self, plan: PruningPlan) -> "Scores":
        """The same with an empty entry for each layer that `plan` has removed.

        Raises:
            InvalidPlan: these are not scores of the model at `plan`.
        """
        living = plan.living
        if len(self.layers) != len(living):
            raise InvalidPlan(
                f"scores of {len(self.layers)} layers for a plan that keeps {len(living)}"
            )
        found = dict(zip(living, self.layers, strict=True))
        layers = tuple(found.get(i, NOTHING) for i in range(len(plan.layers)))
        return replace(self, layers=layers)


NOTHING = LayerScores(
    intermediate=torch.empty(0),
    kv_groups=torch.empty(0),
    query_heads=torch.empty(0, 0),
    attention_importance=0.0,
    mlp_importance=0.0,
)
"""Of a layer that is gone, or of which nothing was measured."""
