"""The one door to a model's layers: everything else asks the adapter and knows no architecture.

Shapes: G groups, E entries of a tensor along the pruned dimension, `repeats = E / G`.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pruning.errors import InvalidModel, UnsupportedModel
from pruning.events import LayerWidths
from pruning.models.families import FAMILIES, Family, Member, Side, Span
from pruning.recipe_parts.method import Axis

AXES: tuple[Axis, ...] = ("intermediate", "kv_group", "query_head", "expert")
"""The axes inside a layer."""


@dataclass(frozen=True)
class GroupedTensor:
    """A parameter of a layer, and the dimension along which `repeats` entries form a group."""

    module: nn.Module
    name: str
    dim: int
    repeats: int
    side: Side
    start: int = 0
    length: int | None = None
    """The entries that are grouped, where others of a fused projection lie beside them."""

    @property
    def normalises(self) -> bool:
        """Whether it averages over its entries, as a norm over all heads does."""
        return self.side == "norm"

    @property
    def parameter(self) -> nn.Parameter:
        parameter = getattr(self.module, self.name)
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def num_groups(self) -> int:
        return self.num_entries // self.repeats

    @property
    def num_entries(self) -> int:
        """Entries along the pruned dimension."""
        return self.parameter.shape[self.dim] if self.length is None else self.length

    @property
    def entries_per_group(self) -> int:
        """Parameters that go with one group."""
        rest = [size for dim, size in enumerate(self.parameter.shape) if dim != self.dim]
        return self.repeats * math.prod(rest)

    def indices(self, groups: torch.Tensor) -> torch.Tensor:
        """Entries [G * repeats] of the given groups [G], in order."""
        offsets = torch.arange(self.repeats, device=groups.device)
        return self.start + (groups[:, None] * self.repeats + offsets).flatten()

    def along(self, values_E: torch.Tensor) -> torch.Tensor:
        """Values [E'] shaped to be multiplied with the parameter, along the pruned dimension."""
        return values_E.view(-1, *[1] * (self.parameter.dim() - 1 - self.dim))

    def sum_by_group(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor of the parameter's shape to fp32 [G]."""
        values = values.narrow(self.dim, self.start, self.num_entries)
        if self.num_groups == 0:
            return torch.zeros(0, device=values.device)
        by_entry = values.transpose(0, self.dim).flatten(1) if values.dim() > 1 else values[:, None]
        return by_entry.reshape(self.num_groups, -1).sum(dim=1, dtype=torch.float32)


@dataclass(frozen=True)
class Adapter:
    """A family bound to the head geometry of one model."""

    family: Family
    head_dim: int
    parallel: bool = False
    """Whether both blocks of a layer read the same residual stream."""
    carried: int = 0
    """Inputs of each output projection that are the stream before its block (SliceGPT)."""

    def layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """The decoder layers, in order."""
        return list(model.base_model.get_submodule("layers"))

    def is_sparse(self, layer: nn.Module) -> bool:
        """Whether the layer's MLP is one of experts, of which each token passes through a few."""
        mlp = layer.get_submodule(self.family.mlp)
        return self.family.experts is not None and hasattr(mlp, "experts")

    def members(self, layer: nn.Module, axis: Axis) -> tuple[Member, ...]:
        if axis == "intermediate":
            sparse = self.is_sparse(layer)
            return self.family.sparse_intermediate if sparse else self.family.intermediate
        if axis == "expert":
            return self.family.expert if self.is_sparse(layer) else ()
        if axis == "kv_group":
            return self.family.kv_group
        return tuple(member for member in self.family.kv_group if member.span == "query_head")

    def tensors(self, layer: nn.Module, axis: Axis) -> list[GroupedTensor]:
        """Every parameter of `layer` that shrinks with `axis`, weights before their biases."""
        found: list[GroupedTensor] = []
        for member in self.members(layer, axis):
            repeats = self._entries(member)
            if axis == "kv_group" and member.span == "query_head":
                repeats *= self.query_heads_per_group(layer)
            found.extend(self._tensors_of(layer, member, repeats))
        return found

    def by_span(self, layer: nn.Module) -> dict[Span, list[GroupedTensor]]:
        """Every parameter of `layer` that any axis shrinks, by what its entries are."""
        found: dict[Span, list[GroupedTensor]] = {
            "channel": [],
            "key_value_head": [],
            "query_head": [],
            "expert": [],
        }
        for member in self._every_member(layer):
            found[member.span].extend(self._tensors_of(layer, member, self._entries(member)))
        return found

    def num_groups(self, layer: nn.Module, axis: Axis) -> int:
        """How many groups `axis` has in `layer`: of `query_head`, those of all KV groups."""
        tensors = self.tensors(layer, axis)
        return tensors[0].num_groups if tensors else 0

    def query_heads_per_group(self, layer: nn.Module) -> int:
        spans = self.by_span(layer)
        num_groups = spans["key_value_head"][0].num_groups
        # Where the attention block is gone there is none to ask; one keeps all counts defined.
        return spans["query_head"][0].num_groups // num_groups if num_groups else 1

    def group_cost(self, layer: nn.Module, axis: Axis, *, per_hidden: int | None = None) -> int:
        """Parameters that one group of `axis` holds in `layer`; `per_hidden` hidden channel of so
        many.

        Channels and experts share theirs: a channel counts as one expert has it, an expert as its
        row of the router.
        """
        tensors = self.tensors(layer, axis)
        number = 1
        if self.is_sparse(layer) and axis == "expert":
            tensors = [tensor for tensor in tensors if tensor.side == "outputs"]
        elif self.is_sparse(layer) and axis == "intermediate":
            number = self.num_groups(layer, "expert")
        if per_hidden is not None:
            number *= per_hidden
            # Biases, and norms over heads, are no wider for a wider residual stream.
            tensors = [tensor for tensor in tensors if tensor.parameter.dim() > 1]
        return sum(tensor.entries_per_group for tensor in tensors) // number

    def widths(self, layer: nn.Module) -> LayerWidths:
        return LayerWidths(
            intermediate_size=self.num_groups(layer, "intermediate"),
            num_attention_heads=self.num_groups(layer, "query_head"),
            num_key_value_heads=self.num_groups(layer, "kv_group"),
            num_experts=self.num_groups(layer, "expert") or None,
        )

    def _every_member(self, layer: nn.Module) -> tuple[Member, ...]:
        axes: tuple[Axis, ...] = ("intermediate", "kv_group", "expert")
        return tuple(member for axis in axes for member in self.members(layer, axis))

    def _entries(self, member: Member) -> int:
        heads = member.span in ("key_value_head", "query_head")
        return member.repeats * (self.head_dim if heads else 1)

    def _tensors_of(self, layer: nn.Module, member: Member, repeats: int) -> list[GroupedTensor]:
        module, name = layer.get_submodule(member.module), member.parameter
        start, length = self._part(layer, member)
        dim = _pruned_dim(member, module.get_parameter(name))
        found = [GroupedTensor(module, name, dim, repeats, member.side, start, length)]
        if member.side == "outputs" and getattr(module, "bias", None) is not None:
            found.append(GroupedTensor(module, "bias", 0, repeats, member.side, start, length))
        return found

    def _part(self, layer: nn.Module, member: Member) -> tuple[int, int | None]:
        """Where a member begins in a fused projection, and its length; elsewhere all of it."""
        parts = [
            other
            for other in self._every_member(layer)
            if (other.module, other.parameter, other.side)
            == (member.module, member.parameter, member.side)
        ]
        if len(parts) == 1:
            carries = self.carried and member.side == "inputs"
            return 0, self._num_inputs(layer, member.span) if carries else None
        weight = layer.get_submodule(member.module).get_parameter(member.parameter)
        total = weight.shape[_pruned_dim(member, weight)]
        lengths = [total // len(parts)] * len(parts)
        if member.span != "channel":
            # The output projection says how many of them are the queries'.
            queries = self._num_inputs(layer, "query_head")
            rest = (total - queries) // (len(parts) - 1)
            lengths = [queries if part.span == "query_head" else rest for part in parts]
        return sum(lengths[: member.part]), lengths[member.part]

    def _num_inputs(self, layer: nn.Module, span: Span) -> int:
        """Input channels of the output projection of a block."""
        members = self._every_member(layer)
        (output,) = (m for m in members if m.side == "inputs" and m.span == span)
        return (
            layer.get_submodule(output.module).get_parameter(output.parameter).shape[-1]
            - self.carried
        )


def _pruned_dim(member: Member, parameter: nn.Parameter) -> int:
    """The dimension of a member's weight that its axis shortens."""
    if member.side in ("norm", "stacked"):
        return 0
    return parameter.dim() - (1 if member.side == "inputs" else 2)


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
    # A plan keeps as many query heads in each group of a layer, so every layer divides evenly.
    every = [config.per_layer_config[index] for index in range(config.num_hidden_layers)]
    widths = next((own for own in every if num_key_value_heads(own)), every[0])
    num_heads, num_kv_heads = widths.num_attention_heads, num_key_value_heads(widths)
    if num_kv_heads == 0 or num_heads % num_kv_heads:
        raise InvalidModel(
            f"{num_heads} query heads do not share {num_kv_heads} KV heads evenly", param="model"
        )
    head_dim = getattr(widths, "head_dim", None) or config.hidden_size // num_heads
    parallel = family.parallel_flag is not None and getattr(config, family.parallel_flag)
    carried = config.hidden_size if getattr(config, "carries_stream", False) else 0
    return Adapter(family, head_dim, parallel, carried)


def num_key_value_heads(config: PretrainedConfig) -> int:
    """Families without grouped heads have no such field."""
    grouped = FAMILIES[config.model_type].grouped_heads
    return int(config.num_key_value_heads if grouped else config.num_attention_heads)
