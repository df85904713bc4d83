"""Cutting a model down to a plan, in place, together with the optimizer that trains it.

`apply_mask` zeroes the same groups instead of removing them: the reference every cut must equal.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from espalier.loading import OwnWidths, silence
from pruning.errors import InvalidPlan
from pruning.models.adapter import Adapter, GroupedTensor, adapter_for
from pruning.models.depth import drop_layers
from pruning.models.experts import mask_router
from pruning.models.families import Span
from pruning.models.geometry import layer_widths
from pruning.models.hidden import (
    outer_stream_tensors,
    refit_stream,
    stream_tensors,
)
from pruning.models.own_widths import write_widths
from pruning.models.support import require_selectable
from pruning.plan import GONE, LayerPlan, PruningPlan
from pruning.ranks import select


@dataclass(frozen=True)
class _Cut:
    """A tensor that loses groups, and those it keeps, counted in the model as it stands."""

    tensor: GroupedTensor
    kept: tuple[int, ...]
    hidden: bool = False
    expert: bool = False

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


@dataclass
class _Slice:
    """What one parameter keeps along each dimension: a fused projection is cut in several parts,
    any weight along heads or channels and along the residual stream."""

    masks: dict[int, torch.Tensor] = field(default_factory=dict)
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    """Where the parameter is to be replaced: a tied one in several modules."""

    def add(self, cut: _Cut) -> None:
        dim = cut.tensor.dim
        self.masks[dim] = self.masks.get(dim, cut.whole()) & cut.mask()
        if (cut.tensor.module, cut.tensor.name) not in self.places:
            self.places.append((cut.tensor.module, cut.tensor.name))

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The kept entries of a tensor of the parameter's shape."""
        for dim, mask in self.masks.items():
            values = select(values, dim, mask.nonzero().flatten())
        return values.contiguous()

    def replace(self, old: nn.Parameter) -> nn.Parameter:
        new = nn.Parameter(self.of(old.detach()), requires_grad=old.requires_grad)
        for module, name in self.places:
            setattr(module, name, new)
            if isinstance(module, nn.Linear):
                module.out_features, module.in_features = module.weight.shape
        return new


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
    slices: dict[nn.Parameter, _Slice] = {}
    for cut in _cuts(model, plan, previous):
        slices.setdefault(cut.tensor.parameter, _Slice()).add(cut)
    while slices:
        # One after the other, so that there are never two models.
        old, kept = slices.popitem()
        new = kept.replace(old)
        if optimizer is not None:
            _follow(optimizer, old, new, kept)
    drop_layers(model, _dropped(plan, previous), optimizer)
    if plan.hidden is not None:
        refit_stream(model, len(plan.hidden))
    _refresh_attributes(model)


@torch.no_grad()
def apply_mask(model: PreTrainedModel, plan: PruningPlan, *, previous: PruningPlan) -> None:
    """Zero in place what `apply_plan` would remove; shapes stay.

    A norm over all heads (OLMo 2) is rescaled to average over the kept entries, as after a cut. A
    norm over the residual stream goes on averaging over all channels, those at zero included. No
    token is routed to a masked expert.

    Raises:
        InvalidPlan: as for `apply_plan`.
    """
    for cut in _cuts(model, plan, previous):
        keep = cut.mask().float()
        if cut.tensor.normalises and not cut.hidden:
            keep *= math.sqrt(len(cut.kept) / cut.tensor.num_groups)
        cut.tensor.parameter.mul_(cut.tensor.along(keep))
        if cut.tensor.side == "outputs" and cut.expert:
            mask_router(cut.tensor.module, cut.mask())
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
        if cut.tensor.side == "inputs" and not cut.hidden
    }


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
    cuts: list[_Cut] = _hidden_cuts(adapter, model, plan, previous)
    for index, layer in zip(living, layers, strict=True):
        now, before = relative.layers[index], previous.layers[index]
        if now == GONE:
            continue
        heads_per_group = adapter.query_heads_per_group(layer)
        _check(index, adapter, layer, before)
        _check_experts(index, model.config, now, before)
        kept = _kept_by_span(now, heads_per_group)
        for span, tensors in adapter.by_span(layer).items():
            cuts.extend(
                _Cut(tensor, kept[span], expert=span == "expert")
                for tensor in tensors
                if len(kept[span]) < tensor.num_groups
            )
    return cuts


def _hidden_cuts(
    adapter: Adapter, model: PreTrainedModel, plan: PruningPlan, previous: PruningPlan
) -> list[_Cut]:
    """What goes with hidden channels: of everything as wide as the residual stream."""
    kept = plan.relative_to(previous).hidden
    if kept is None or len(kept) == model.config.hidden_size:
        return []
    if kept[-1] >= model.config.hidden_size:
        raise InvalidPlan(f"the model has {model.config.hidden_size} hidden channels, not more")
    require_selectable(adapter.family)
    stream = outer_stream_tensors(adapter, model)
    for layer in adapter.layers(model):
        stream += stream_tensors(adapter, layer)
    return [_Cut(tensor, kept, hidden=True) for tensor in {_place(t): t for t in stream}.values()]


def _place(tensor: GroupedTensor) -> tuple[int, str]:
    return id(tensor.module), tensor.name


def _check_experts(index: int, config: PretrainedConfig, now: LayerPlan, before: LayerPlan) -> None:
    """Raise where a layer of experts would keep too few for a token to be routed."""
    if not before.experts:
        return
    fewest = config.num_experts_per_tok
    if len(now.experts) < fewest:
        raise InvalidPlan(f"layer {index}: each token passes through {fewest} experts, no fewer")
    if not now.intermediate:
        raise InvalidPlan(f"layer {index}: experts keep some channels, or their layer goes whole")


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
        "expert": layer.experts,
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
        ("expert", adapter.num_groups(layer, "expert"), len(before.experts)),
        ("query_head", adapter.query_heads_per_group(layer), None if heads is None else len(heads)),
    ):
        if expected not in (None, found):
            raise InvalidPlan(
                f"layer {index}: the model has {found} groups of {name}, its plan says {expected}"
            )


def _follow(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, cut: _Slice
) -> None:
    """Point an optimizer at a new parameter and slice its state like it."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in optimizer.state:
        optimizer.state[new] = {
            key: cut.of(value)
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
        if sizes.num_experts is not None:
            experts, router = mlp.get_submodule("experts"), mlp.get_submodule("gate")
            experts.num_experts = router.num_experts = sizes.num_experts  # type: ignore[assignment]
            experts.intermediate_dim = sizes.intermediate_size  # type: ignore[assignment]
        attention = layer.get_submodule(adapter.family.attention)
        attention.num_key_value_groups = adapter.query_heads_per_group(layer)  # type: ignore[assignment]
        attention.num_key_value_heads = sizes.num_key_value_heads  # type: ignore[assignment]
        if sizes.num_key_value_heads == 0:
            silence(attention)
        if adapter.family.attention_reads_config:
            own = OwnWidths(model.config, num_attention_heads=sizes.num_attention_heads)
            attention.config = own  # type: ignore[assignment]
    write_widths(model.config, widths, head_dim=adapter.head_dim)
