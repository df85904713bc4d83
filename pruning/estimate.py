"""What a recipe would lead to, from the model's config.json alone. Torch-free.

The rules are those of the run itself: the same targets, the same increments, the same floor.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from pruning import serving
from pruning.allocation.widths import (
    allowed_widths,
    depth_of,
    hidden_size_of,
    hidden_widths,
    widths_of,
)
from pruning.errors import TargetUnreachable
from pruning.events import LayerWidths
from pruning.methods.increments import (
    BYTES_PER_PARAMETER,
    plan_increments,
    repaired_from,
    resolve_target,
    stream_share,
)
from pruning.models.architecture import Architecture, Costs, read_architecture
from pruning.models.support import check_supported
from pruning.recipe import Recipe
from pruning.recipe_parts.method import Axis
from pruning.recipe_parts.target import Shape

_TRAINING_BYTES = {"full": 16 + 4, "lora": 4 + 4, "none": 8}
"""Of each parameter: fp32 weight, gradient and two moments where all are trained, and the weight to
roll back to; without training, weight and gradient of the calibration."""
_STATE_BYTES = 12
"""Of each parameter in a stored training state: fp32 weight and two moments."""
_COMPILED_SHARE = 0.6
"""Of what a token keeps: the rest is made again inside compiled kernels (SmolLM2-135M: 0.43 MB)."""
_LOSS_CHUNK_TOKENS = 512
_RUNTIME_BYTES = 600 << 20
"""The interpreter with torch and transformers imported."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Sizes, memory and work of a run; `None` where only the run itself will know."""

    model_type: str
    num_parameters: int
    num_prunable_parameters: int
    floor_num_parameters: int
    targets: tuple[int, ...]
    increments: tuple[int, ...]
    bytes_per_parameter: int
    num_tokens: int | None
    num_calibration_tokens: int | None
    """Of each cut."""
    memory_by_device: Mapping[str, int]
    """Bytes while it trains, on each kind of device that the recipe can run on."""

    def peak_memory_bytes(self, device: str | None = None) -> int:
        """While it trains; the most that it can be, where it is not known on what."""
        return self.memory_by_device.get(device or "", max(self.memory_by_device.values()))

    @property
    def final_num_parameters(self) -> int:
        """The smallest size published."""
        return self.increments[-1]

    @property
    def storage_bytes(self) -> int:
        """What the checkpoints of all increments take, training states included."""
        return sum(self.increments) * (self.bytes_per_parameter + _STATE_BYTES)

    @property
    def parameter_tokens(self) -> float | None:
        """Training work: tokens times the mean size they are trained at."""
        return None if self.num_tokens is None else self.num_tokens * fmean(self.increments)


def estimate(
    recipe: Recipe, config: Mapping[str, Any], *, corpus_tokens: int | None = None
) -> Estimate:
    """What the recipe would do to the model of this config.json.

    `corpus_tokens` is about how many tokens the training text has, where that is known.

    Raises:
        UnsupportedModel: no adapter for its architecture.
        InvalidModel: the configuration lacks a size.
        TargetUnreachable: a target lies above the model or below the floor; `limit` says which.
        ExportRefused: an engine that is to serve the result has nothing to run it with.
    """
    architecture = read_architecture(config)
    carries_stream = bool(config.get("carries_stream"))
    check_supported(recipe, architecture.model_type, carries_stream=carries_stream)
    serving.check_model(
        recipe.serve_with,
        recipe.output.exports,
        model_type=architecture.model_type,
        tied=architecture.tied,
        layout=recipe.allocation.layout,
        axes=recipe.axes,
    )
    floor = floor_of(recipe, architecture)
    targets = _resolve_targets(recipe, architecture, floor)
    # Training is shared out afterwards; the sizes do not depend on it.
    increments = plan_increments(
        num_parameters=architecture.num_parameters,
        targets=targets,
        total_steps=0,
        schedule=recipe.schedule,
        repaired_from=repaired_from(
            recipe,
            num_parameters=architecture.num_parameters,
            num_prunable_parameters=architecture.num_prunable_parameters,
        ),
    )
    num_tokens = _num_tokens(recipe, corpus_tokens)
    return Estimate(
        model_type=architecture.model_type,
        num_parameters=architecture.num_parameters,
        num_prunable_parameters=architecture.num_prunable_parameters,
        floor_num_parameters=floor,
        targets=targets,
        increments=tuple(increment.target_num_parameters for increment in increments),
        bytes_per_parameter=BYTES_PER_PARAMETER[recipe.output.dtype],
        num_tokens=num_tokens,
        num_calibration_tokens=_calibration_tokens(recipe, num_tokens, len(increments)),
        memory_by_device={
            device: _peak_memory(recipe, architecture, device) for device in _devices(recipe)
        },
    )


def floor_of(recipe: Recipe, architecture: Architecture) -> int:
    """The parameters left when every layer is as narrow as the constraints allow.

    Raises:
        TargetUnreachable: `tensor_parallel` cannot be met.
    """
    architecture = _narrowest_stream(recipe, architecture)
    constraints, num_layers = recipe.allocation.constraints, len(architecture.layers)
    protected = {i for i in range(num_layers) if constraints.protects(i, num_layers)}
    if recipe.axes[0] in ("layer", "attention_block", "mlp_block"):
        costs, layers = architecture.costs, architecture.layers
        sizes = [costs.of_layer(layer) for layer in layers]
        least = [_without_blocks(recipe, costs, layer) for layer in layers]
        stay = [sizes[i] if i in protected else least[i] for i in range(num_layers)]
        if not protected:
            # One layer, or one block of a kind, always stays.
            stay[0] = sizes[0]
        return architecture.num_parameters - sum(sizes) + sum(stay)
    removable = sum(
        architecture.costs.of_layer(layer)
        - architecture.costs.of_layer(_narrowest(recipe, layer, architecture.experts_per_token))
        for index, layer in enumerate(architecture.layers)
        if index not in protected
    )
    return architecture.num_parameters - removable + _shortcuts(recipe, architecture)


def _narrowest_stream(recipe: Recipe, architecture: Architecture) -> Architecture:
    if "hidden" not in recipe.axes:
        return architecture
    if recipe.importance.kind == "pca_energy":
        architecture = architecture.untied()
    sizes = hidden_widths(
        architecture.hidden_size, architecture.hidden_divisor, recipe.allocation.constraints
    )
    return architecture.narrowed(min(sizes, default=architecture.hidden_size))


def _without_blocks(recipe: Recipe, costs: Costs, layer: LayerWidths) -> int:
    """What is left of a layer that loses what the axes name."""
    gone = set(recipe.axes)
    if "layer" in gone or len(gone) == 2:
        return 0
    heads = {"num_attention_heads": 0, "num_key_value_heads": 0}
    nothing = {"intermediate_size": 0} if "mlp_block" in gone else heads
    return costs.of_layer(layer.model_copy(update=nothing))


def _narrowest(recipe: Recipe, layer: LayerWidths, experts_per_token: int) -> LayerWidths:
    num_groups = layer.num_key_value_heads
    groups = _least(recipe, "kv_group", num_groups)
    heads = _least(recipe, "query_head", layer.num_attention_heads // max(1, num_groups))
    return LayerWidths(
        intermediate_size=_least(recipe, "intermediate", layer.intermediate_size),
        num_attention_heads=groups * heads,
        num_key_value_heads=groups,
        num_experts=layer.num_experts
        and max(_least(recipe, "expert", layer.num_experts), experts_per_token),
    )


def _least(recipe: Recipe, axis: Axis, width: int) -> int:
    if axis not in recipe.axes:
        return width
    return min(allowed_widths(axis, width, recipe.allocation.constraints), default=width)


def _resolve_targets(recipe: Recipe, architecture: Architecture, floor: int) -> tuple[int, ...]:
    resolved = []
    for index, target in enumerate(recipe.targets):
        param = f"target.{index}" if isinstance(recipe.target, tuple) else "target"
        num_parameters = resolve_target(
            target,
            num_parameters=architecture.num_parameters,
            num_prunable_parameters=architecture.num_prunable_parameters,
            dtype=recipe.output.dtype,
            shaped=partial(_shaped, architecture),
            outside=partial(_outside, recipe, architecture),
        )
        if target.shape is None and num_parameters < floor:
            raise TargetUnreachable(
                f"the constraints leave at least {floor:,} parameters, "
                f"the target is {num_parameters:,}",
                param=param,
                hint="raise the target, or lower minimum widths and protect fewer layers",
                limit=floor,
            )
        resolved.append(num_parameters)
    return tuple(resolved)


def _shortcuts(recipe: Recipe, architecture: Architecture) -> int:
    """Parameters of the matrices between blocks that are turned each by itself."""
    if recipe.importance.rotation != "per_block":
        return 0
    return 2 * len(architecture.layers) * architecture.hidden_size**2


def _outside(recipe: Recipe, architecture: Architecture, sparsity: float) -> int:
    """Parameters outside the layers when these have lost `sparsity`."""
    shortcuts = _shortcuts(recipe, architecture) / architecture.num_prunable_parameters
    width = round(architecture.hidden_size * stream_share(recipe.axes, sparsity, shortcuts))
    if recipe.importance.kind == "pca_energy" and sparsity > 0:
        architecture = architecture.untied()
    narrow = architecture.narrowed(width)
    return narrow.num_parameters - narrow.num_prunable_parameters


def _shaped(architecture: Architecture, shape: Shape) -> int:
    """What the model would count with another, uniform architecture."""
    first, *others = architecture.layers
    if any(layer != first for layer in others):
        raise TargetUnreachable("the model's layers differ in width", param="target.shape")
    widths = widths_of(shape, first)
    size = hidden_size_of(shape, architecture.hidden_size, architecture.hidden_divisor)
    architecture = architecture.narrowed(size)
    layer = architecture.costs.of_layer(widths)
    layers = depth_of(shape, len(architecture.layers)) * layer
    return architecture.num_parameters - architecture.num_prunable_parameters + layers


def _num_tokens(recipe: Recipe, corpus_tokens: int | None) -> int | None:
    if recipe.recovery.kind == "none":
        return 0
    if recipe.schedule.num_tokens is not None:
        return recipe.schedule.num_tokens
    if corpus_tokens is None:
        return None
    return round(corpus_tokens * (1 - recipe.data.held_out_fraction))


def _calibration_tokens(recipe: Recipe, num_tokens: int | None, num_increments: int) -> int | None:
    """Tokens that each cut is measured on; None where that follows from a text of unknown size."""
    least = recipe.calibration_size(num_tokens=0, num_increments=num_increments)
    if num_tokens is None:
        most = recipe.calibration_size(num_tokens=sys.maxsize, num_increments=num_increments)
        return least.num_tokens if least == most else None
    size = recipe.calibration_size(num_tokens=num_tokens, num_increments=num_increments)
    return size.num_tokens


def _devices(recipe: Recipe) -> Sequence[str]:
    if recipe.processes > 1:
        return ("cpu",)
    return ("cuda",) if recipe.gpus is not None else ("cpu", "cuda")


def _peak_memory(recipe: Recipe, architecture: Architecture, device: str) -> int:
    """Bytes while training the model as it is before the first cut, when it is largest."""
    recovery = recipe.recovery
    weights = architecture.num_parameters * _TRAINING_BYTES[recovery.kind]
    tokens = recovery.micro_batch(device) * recovery.sequence_length
    width = 2 if recovery.precision == "bfloat16" else 4
    # What the backward pass of a decoder layer keeps: inputs of norms and projections in the
    # residual width, the projections' outputs, and the three MLP activations.
    by_layer = [
        8 * architecture.hidden_size
        + 4 * layer.num_attention_heads * architecture.head_dim
        + 4 * layer.intermediate_size
        for layer in architecture.layers
    ]
    per_token: float = sum(by_layer)
    if recovery.compile:
        per_token *= _COMPILED_SHARE
    if recovery.activation_checkpointing:
        per_token = len(by_layer) * architecture.hidden_size + max(by_layer)
    if recovery.distillation is not None and recovery.kind != "none":
        weights += architecture.num_parameters * width
    logits = 2 * _LOSS_CHUNK_TOKENS * architecture.vocab_size * 4
    return weights + round(tokens * per_token * width) + logits + _RUNTIME_BYTES
