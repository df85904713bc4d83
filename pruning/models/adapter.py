"""The one door to a model's layers: everything else asks the adapter and knows no architecture.

Shapes: G groups, E entries of a tensor along the pruned dimension, `repeats = E / G`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pruning.errors import InvalidModel, UnsupportedModel
from pruning.events import LayerWidths
from pruning.models.families import FAMILIES, Family, Member, Span
from pruning.plan import LayerPlan
from pruning.recipe import Axis

AXES: tuple[Axis, ...] = ("intermediate", "kv_group")


@dataclass(frozen=True)
class GroupedTensor:
    """A parameter of a layer, and the dimension along which `repeats` entries form a group."""

    module: nn.Module
    name: Literal["weight", "bias"]
    dim: int
    repeats: int
    normalises: bool

    @property
    def parameter(self) -> nn.Parameter:
        parameter = getattr(self.module, self.name)
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def num_groups(self) -> int:
        return self.parameter.shape[self.dim] // self.repeats

    @property
    def entries_per_group(self) -> int:
        """Parameters that go with one group."""
        return self.parameter.numel() // self.num_groups

    def indices(self, groups: torch.Tensor) -> torch.Tensor:
        """Entries [G * repeats] of the given groups [G], in order."""
        offsets = torch.arange(self.repeats, device=groups.device)
        return (groups[:, None] * self.repeats + offsets).flatten()

    def sum_by_group(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor of the parameter's shape to fp32 [G]; query heads fold as (K, R, h)."""
        by_entry = values.transpose(0, self.dim).flatten(1) if values.dim() > 1 else values[:, None]
        return by_entry.reshape(self.num_groups, -1).sum(dim=1, dtype=torch.float32)


@dataclass(frozen=True)
class Adapter:
    """A family bound to the head geometry of one model."""

    family: Family
    head_dim: int
    query_heads_per_group: int

    def layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """The decoder layers, in order."""
        return list(model.base_model.get_submodule("layers"))

    def members(self, axis: Axis) -> tuple[Member, ...]:
        return self.family.intermediate if axis == "intermediate" else self.family.kv_group

    def tensors(self, layer: nn.Module, axis: Axis) -> list[GroupedTensor]:
        """Every parameter of `layer` that shrinks with `axis`, weights before their biases."""
        found: list[GroupedTensor] = []
        for member in self.members(axis):
            module = layer.get_submodule(member.module)
            repeats = self.repeats(member.span)
            dim = 1 if member.side == "inputs" else 0
            found.append(GroupedTensor(module, "weight", dim, repeats, member.side == "norm"))
            if member.side == "outputs" and getattr(module, "bias", None) is not None:
                found.append(GroupedTensor(module, "bias", 0, repeats, normalises=False))
        return found

    def repeats(self, span: Span) -> int:
        if span == "channel":
            return 1
        heads = 1 if span == "key_value_head" else self.query_heads_per_group
        return heads * self.head_dim

    def num_groups(self, layer: nn.Module, axis: Axis) -> int:
        return self.tensors(layer, axis)[0].num_groups

    def group_cost(self, layer: nn.Module, axis: Axis) -> int:
        """Parameters that one group of `axis` holds in `layer`."""
        return sum(tensor.entries_per_group for tensor in self.tensors(layer, axis))

    def widths(self, layer: nn.Module) -> LayerWidths:
        num_kv_groups = self.num_groups(layer, "kv_group")
        return LayerWidths(
            intermediate_size=self.num_groups(layer, "intermediate"),
            num_attention_heads=num_kv_groups * self.query_heads_per_group,
            num_key_value_heads=num_kv_groups,
        )


def adapter_for(config: PretrainedConfig) -> Adapter:
    """The adapter of a model configuration.

    Raises:
        UnsupportedModel: no family declares its `model_type`.
        InvalidModel: its query heads do not divide into its KV heads.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModel(
            f"model_type {config.model_type!r} is not supported",
            param="model",
            hint=f"supported: {', '.join(sorted(FAMILIES))}",
        )
    # Every layer keeps the ratio of the base model, so any layer's widths give it.
    widths = config.per_layer_config[0]
    num_heads, num_kv_heads = widths.num_attention_heads, widths.num_key_value_heads
    if num_heads % num_kv_heads:
        raise InvalidModel(
            f"{num_heads} query heads do not share {num_kv_heads} KV heads evenly", param="model"
        )
    head_dim = getattr(widths, "head_dim", None) or config.hidden_size // num_heads
    return Adapter(family, head_dim, num_heads // num_kv_heads)


def kept_groups(layer: LayerPlan, axis: Axis) -> tuple[int, ...]:
    """The groups of `axis` that a layer's plan keeps."""
    return layer.intermediate if axis == "intermediate" else layer.kv_groups
