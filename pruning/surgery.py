"""Cutting a model down to a plan, in place, together with the optimizer that trains it.

`apply_mask` zeroes the same groups instead of removing them: the reference every cut must equal.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from espalier.loading import OwnWidths, silence
from pruning.errors import InvalidPlan
from pruning.events import LayerWidths
from pruning.models.adapter import Adapter, GroupedTensor, adapter_for
from pruning.models.depth import drop_layers
from pruning.models.families import Span
from pruning.models.geometry import layer_widths
from pruning.plan import GONE, LayerPlan, PruningPlan


@dataclass(frozen=True)
class _Cut:
    """A tensor that loses groups, and those it keeps, counted in the model as it stands."""

    tensor: GroupedTensor
    kept: tuple[int, ...]

    def indices(self) -> torch.Tensor:
        """Entries [E] to keep along the pruned dimension."""
        device = self.tensor.parameter.device
        return self.tensor.indices(torch.tensor(self.kept, dtype=torch.long, device=device))

    def whole(self) -> torch.Tensor:
        """True for every entry along the pruned dimension."""
        parameter = self.tensor.parameter
        size = parameter.shape[self.tensor.dim]
        return torch.ones(size, dtype=torch.bool, device=parameter.device)

    def mask(self) -> torch.Tensor:
        """False for the entries along the pruned dimension that go."""
        mask = self.whole()
        mask[self.tensor.start : self.tensor.start + self.tensor.num_entries] = False
        mask[self.indices()] = True
        return mask


@torch.no_grad()
def apply_plan(
    model: PreTrainedModel,
    plan: PruningPlan,
    *,
    previous: PruningPlan,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Cut `model` in place from `previous`, the plan it is at, to `plan`.

    Gradients of cut parameters are dropped. The optimizer goes on with the new parameters, its
    per-entry state (Adam's moments) sliced by the same indices as the weights. Where whole layers
    go, those after them are renumbered.

    Raises:
        InvalidPlan: `plan` keeps what is already gone or empties a layer, or the model is not at
            `previous`. Nothing has been cut then.
    """
    kept: dict[nn.Parameter, tuple[GroupedTensor, torch.Tensor]] = {}
    for cut in _cuts(model, plan, previous):
        # A fused projection is cut in several parts, and sliced once.
        _, before = kept.get(cut.tensor.parameter, (cut.tensor, cut.whole()))
        kept[cut.tensor.parameter] = (cut.tensor, before & cut.mask())
    slices: dict[nn.Parameter, tuple[nn.Parameter, int, torch.Tensor]] = {}
    for old, (tensor, mask) in kept.items():
        indices = mask.nonzero().flatten()
        slices[old] = (_replace(tensor, indices), tensor.dim, indices)
    if optimizer is not None:
        _follow(optimizer, slices)
    drop_layers(model, _dropped(plan, previous), optimizer)
    _refresh_attributes(model)


@torch.no_grad()
def apply_mask(model: PreTrainedModel, plan: PruningPlan, *, previous: PruningPlan) -> None:
    """Zero in place what `apply_plan` would remove; shapes stay.

    A norm over all heads (OLMo 2) is rescaled to average over the kept entries, as after a cut.

    Raises:
        InvalidPlan: as for `apply_plan`.
    """
    for cut in _cuts(model, plan, previous):
        parameter, dim = cut.tensor.parameter, cut.tensor.dim
        keep = cut.mask().float()
        if cut.tensor.normalises:
            keep *= math.sqrt(len(cut.kept) / cut.tensor.num_groups)
        parameter.mul_(keep if dim == parameter.dim() - 1 else keep[:, None])
    adapter = adapter_for(model.config)
    layers = adapter.layers(model)
    for position in _dropped(plan, previous):
        for tensors in adapter.by_span(layers[position]).values():
            for output in (tensor.module for tensor in tensors if tensor.side == "inputs"):
                for parameter in output.parameters():
                    parameter.zero_()


def kept_inputs(
    model: PreTrainedModel, plan: PruningPlan, *, previous: PruningPlan
) -> dict[nn.Parameter, torch.Tensor]:
    """Of every weight [out, in] that `apply_plan` would take inputs from, the columns that stay.

    Raises:
        InvalidPlan: as for `apply_plan`.
    """
    return {
        cut.tensor.parameter: cut.indices()
        for cut in _cuts(model, plan, previous)
        if cut.tensor.dim == 1
    }


def write_widths(
    config: PretrainedConfig, widths: tuple[LayerWidths, ...], *, head_dim: int
) -> None:
    """Record layer sizes in a configuration, so that the saved model opens again.

    Equal layers become an ordinary configuration that stock transformers opens; others are written
    as `per_layer_config`, beside the base model's values.
    """
    # Without it some families derive it from the number of heads, which no longer gives it.
    config.head_dim = head_dim
    config.per_layer_config = None
    config.__dict__.pop("allow_global_per_layer_attribute_access", None)
    if len(set(widths)) == 1 and _is_accepted(config, widths[0]):
        _set_widths(config, widths[0])
        return
    config.per_layer_config = {i: layer.model_dump() for i, layer in enumerate(widths)}
    # Transformers' own validation reads the model-wide values when it saves and opens.
    config.allow_global_per_layer_attribute_access = config.is_heterogeneous


def _cuts(model: PreTrainedModel, plan: PruningPlan, previous: PruningPlan) -> list[_Cut]:
    """All tensors that lose something between two plans, checked before any is touched."""
    adapter = adapter_for(model.config)
    layers = adapter.layers(model)
    relative, living = plan.relative_to(previous), previous.living
    if len(living) != len(layers):
        raise InvalidPlan(f"the plan before has {len(living)} layers, the model {len(layers)}")
    if not any(layer.kv_groups for layer in plan.layers):
        raise InvalidPlan("the plan keeps no attention block")
    if not any(layer.intermediate for layer in plan.layers):
        raise InvalidPlan("the plan keeps no MLP block")
    cuts: list[_Cut] = []
    for index, layer in zip(living, layers, strict=True):
        now, before = relative.layers[index], previous.layers[index]
        if now == GONE:
            continue
        heads_per_group = adapter.query_heads_per_group(layer)
        _check(index, adapter, layer, before)
        kept = _kept_by_span(now, heads_per_group)
        for span, tensors in adapter.by_span(layer).items():
            cuts.extend(
                _Cut(tensor, kept[span])
                for tensor in tensors
                if len(kept[span]) < tensor.num_groups
            )
    return cuts


def _dropped(plan: PruningPlan, previous: PruningPlan) -> list[int]:
    """Positions, in the model as it stands, of the layers that go whole."""
    return [
        position for position, index in enumerate(previous.living) if plan.layers[index] == GONE
    ]


def _kept_by_span(layer: LayerPlan, heads_per_group: int) -> dict[Span, tuple[int, ...]]:
    """What a layer keeps, query heads counted over the whole layer."""
    heads = layer.query_heads or (tuple(range(heads_per_group)),) * len(layer.kv_groups)
    return {
        "channel": layer.intermediate,
        "key_value_head": layer.kv_groups,
        "query_head": tuple(
            group * heads_per_group + head
            for group, kept in zip(layer.kv_groups, heads, strict=True)
            for head in kept
        ),
    }


def _check(index: int, adapter: Adapter, layer: nn.Module, before: LayerPlan) -> None:
    """Raise unless a layer of the model has what the plan before says."""
    heads = before.query_heads[0] if before.query_heads else None
    for name, found, expected in (
        ("intermediate", adapter.num_groups(layer, "intermediate"), len(before.intermediate)),
        ("kv_group", adapter.num_groups(layer, "kv_group"), len(before.kv_groups)),
        ("query_head", adapter.query_heads_per_group(layer), None if heads is None else len(heads)),
    ):
        if expected not in (None, found):
            raise InvalidPlan(
                f"layer {index}: the model has {found} groups of {name}, its plan says {expected}"
            )


def _replace(tensor: GroupedTensor, indices: torch.Tensor) -> nn.Parameter:
    old, module = tensor.parameter, tensor.module
    new = nn.Parameter(
        old.detach().index_select(tensor.dim, indices).contiguous(), requires_grad=old.requires_grad
    )
    setattr(module, tensor.name, new)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    return new


def _follow(
    optimizer: torch.optim.Optimizer,
    slices: Mapping[nn.Parameter, tuple[nn.Parameter, int, torch.Tensor]],
) -> None:
    """Point an optimizer at the new parameters and slice its state like them."""
    for group in optimizer.param_groups:
        group["params"] = [slices[p][0] if p in slices else p for p in group["params"]]
    for old, (new, dim, indices) in slices.items():
        if old not in optimizer.state:
            continue
        optimizer.state[new] = {
            key: value.index_select(dim, indices).contiguous()
            if isinstance(value, torch.Tensor) and value.shape == old.shape
            else value
            for key, value in optimizer.state.pop(old).items()
        }


def _refresh_attributes(model: PreTrainedModel) -> None:
    """Make modules and configuration say what the tensors are."""
    adapter = adapter_for(model.config)
    widths = layer_widths(model)
    for layer, sizes in zip(adapter.layers(model), widths, strict=True):
        mlp = layer.get_submodule(adapter.family.mlp)
        mlp.intermediate_size = sizes.intermediate_size  # type: ignore[assignment]
        attention = layer.get_submodule(adapter.family.attention)
        attention.num_key_value_groups = adapter.query_heads_per_group(layer)  # type: ignore[assignment]
        attention.num_key_value_heads = sizes.num_key_value_heads  # type: ignore[assignment]
        if sizes.num_key_value_heads == 0:
            silence(attention)
        if adapter.family.attention_reads_config:
            own = OwnWidths(model.config, num_attention_heads=sizes.num_attention_heads)
            attention.config = own  # type: ignore[assignment]
    write_widths(model.config, widths, head_dim=adapter.head_dim)


def _set_widths(config: PretrainedConfig, widths: LayerWidths) -> None:
    for name, value in widths.model_dump().items():
        setattr(config, name, value)


def _is_accepted(config: PretrainedConfig, widths: LayerWidths) -> bool:
    """Whether the family takes these model-wide: Llama wants heads to divide the hidden size."""
    if 0 in widths.model_dump().values():
        return False
    trial = copy.deepcopy(config)
    try:
        _set_widths(trial, widths)
        trial.validate_architecture()
    except ValueError:
        return False
    return True
