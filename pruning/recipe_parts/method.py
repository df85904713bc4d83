"""How a recipe cuts: axes, importance, allocation, schedule and compensation."""

from typing import Literal

from pydantic import Field

from pruning.recipe_parts.calibration import Calibration
from pruning.recipe_parts.part import Part

Axis = Literal[
    "intermediate",
    "kv_group",
    "query_head",
    "expert",
    "hidden",
    "layer",
    "attention_block",
    "mlp_block",
]
DEPTH_AXES: tuple[Axis, ...] = ("layer", "attention_block", "mlp_block")
"""Axes that take whole blocks."""
MASKED_AXES: tuple[Axis, ...] = ("intermediate", "kv_group", "query_head", "layer", "hidden")
"""Axes that masks can be learned of."""
ImportanceKind = Literal[
    "magnitude",
    "taylor",
    "fisher",
    "fluctuation",
    "wanda",
    "activation",
    "random",
    "block_influence",
    "fused",
    "learned_mask",
    "pca_energy",
]
HIDDEN_IMPORTANCE: tuple[ImportanceKind, ...] = (
    "activation",
    "taylor",
    "magnitude",
    "random",
    "pca_energy",
    "learned_mask",
)
"""What hidden channels can be measured by."""
TaylorOrder = Literal["first", "second", "mix"]
AllocationKind = Literal[
    "uniform", "layer_adaptive", "equal_marginal", "global_zscore", "fluctuation", "energy"
]
Layout = Literal["per_layer", "uniform"]
Compensation = Literal["none", "least_squares", "newton", "bias", "affine", "merge"]
WITH_BIASES: tuple[Compensation, ...] = ("bias", "affine")
"""What keeps a constant of what a cut takes, and so needs the mean of it."""
WITH_MOMENTS: tuple[Compensation, ...] = ("least_squares", "newton", "affine", "merge")
"""What needs the second moments of what enters the output projections."""
MethodName = Literal[
    "adapt_pruner",
    "espalier",
    "llm_pruner",
    "flap",
    "shortgpt",
    "minitron",
    "sheared_llama",
    "efficientllm",
    "saap",
    "slicegpt",
]


class Importance(Part):
    """How groups and layers are scored; higher means keep."""

    kind: ImportanceKind = "taylor"
    taylor_order: TaylorOrder = Field("first", description="Order of the Taylor expansion.")
    calibration: Calibration = Field(Calibration(), description="The text it is measured on.")
    ridge: float = Field(
        0.01, gt=0, lt=1, description="By how much the diagonal of input moments is raised."
    )
    rotation: Literal["global", "per_block"] = Field(
        "global",
        description="`pca_energy`: one for the whole model, which stays a stock model, or "
        "SliceGPT's own for each block, with shortcut matrices between them.",
    )


class Constraints(Part):
    """What every allocation honours, so that the result can be served."""

    width_multiple: int = Field(32, gt=0, description="Intermediate sizes are multiples of this.")
    min_intermediate_size: int = Field(32, gt=0, description="No MLP gets narrower.")
    hidden_multiple: int = Field(8, gt=0, description="Hidden sizes are multiples of this.")
    min_hidden_size: int = Field(32, gt=0, description="No residual stream gets narrower.")
    min_kv_groups: int = Field(1, gt=0, description="No layer keeps fewer KV heads.")
    min_query_heads_per_group: int = Field(
        1, gt=0, description="No KV head keeps fewer query heads."
    )
    min_experts: int = Field(
        1,
        gt=0,
        description="No layer of experts keeps fewer, nor fewer than a token passes through.",
    )
    tensor_parallel: int = Field(1, gt=0, description="Every width and head count divides by this.")
    protected_layers: tuple[int, ...] = Field(
        (), description="Layers that lose nothing; -1 is the last one."
    )

    def protects(self, layer: int, num_layers: int) -> bool:
        """Whether a layer of `num_layers` loses nothing."""
        return layer in self.protected_layers or layer - num_layers in self.protected_layers


class Allocation(Part):
    """How the sparsity of an increment is spread over layers and axes."""

    kind: AllocationKind = "layer_adaptive"
    amplitude: float = Field(1.0, ge=0, le=1, description="Spread around the mean layer sparsity.")
    layout: Layout = Field(
        "per_layer", description="Own widths for each layer, or the same for all."
    )
    constraints: Constraints = Field(Constraints(), description="What it honours.")


ScheduleKind = Literal["staged", "learned_mask", "continuous"]


class Schedule(Part):
    """When the cuts come, and how the training tokens are shared between them.

    `staged` cuts first in each increment, then trains. The others prune while the first part of an
    increment trains: `learned_mask` learns masks with the weights and cuts once; `continuous` cuts
    little by little, by what the training steps themselves show.
    """

    kind: ScheduleKind = Field("staged", description="What an increment begins with.")
    pruning_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of an increment's training over which it is pruned, unless `staged`.",
    )
    steps_per_cut: int = Field(
        8, gt=0, description="Optimizer steps from cut to cut, where `continuous`."
    )
    num_increments: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Default: one for every 7 % of parameters removed, at least 3; where nothing "
        "trains and cuts are repaired, so many that none takes more than a fifth of the decoder "
        "layers as it finds them.",
    )
    num_tokens: int | None = Field(
        None,
        ge=0,
        description="Training tokens over all increments. Default: one pass over the corpus.",
    )
    token_share: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="How training tokens are shared between increments."
    )
