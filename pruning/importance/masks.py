"""Masks over a model's groups and layers, learned with its loss (Sheared-LLaMA, 2310.06694 §3.1).

Shapes: F channels, K KV groups, R query heads in each, I inputs of an output projection.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.importance.hard_concrete import MAX_LOG_ODDS, open_probability, sampled, settled
from pruning.models.adapter import adapter_for
from pruning.models.projections import BlockKey, output_projections
from pruning.plan import LayerPlan, PruningPlan
from pruning.recipe_parts.method import Axis
from pruning.scores import LayerScores, Scores


@dataclass
class Mask:
    """The masks of one axis of one layer; the model is multiplied with `values`.

    `intermediate` [F], `kv_group` [K], `query_head` [K, R], `layer` [1].
    """

    log_odds: Tensor
    values: Tensor
    drawn: Tensor

    @classmethod
    def opened(cls, shape: tuple[int, ...], device: torch.device) -> "Mask":
        """As open as it gets, which is where the official code starts too."""
        log_odds = torch.full(shape, MAX_LOG_ODDS, device=device, requires_grad=True)
        values = torch.ones(shape, device=device, requires_grad=True)
        return cls(log_odds, values, drawn=values)

    @property
    def open(self) -> Tensor:
        """How likely each is to be above 0, differentiable."""
        return open_probability(self.log_odds)

    def set(self, values: Tensor) -> None:
        # In place: whatever multiplies with them, a compiled layer say, keeps the tensor.
        with torch.no_grad():
            self.values.copy_(values)


@dataclass(frozen=True)
class LayerMasks:
    """The masks of one decoder layer, and what hangs on each, in parameters.

    `channel_cost` and `head_cost` are those of one group, `group_cost` that of a KV group without
    its query heads, `cost` what lies outside all groups.
    """

    masks: dict[Axis, Mask]
    num_channels: int
    num_groups: int
    heads_per_group: int
    channel_cost: int
    group_cost: int
    head_cost: int
    cost: int
    device: torch.device

    @property
    def num_parameters(self) -> int:
        """All of the layer's parameters."""
        group = self.group_cost + self.heads_per_group * self.head_cost
        return self.cost + self.num_channels * self.channel_cost + self.num_groups * group

    def open(self, axis: Axis) -> Tensor:
        """How likely the masks of an axis are to be open, all 1 where it has none."""
        if axis in self.masks:
            return self.masks[axis].open
        shapes: dict[Axis, tuple[int, ...]] = {
            "intermediate": (self.num_channels,),
            "kv_group": (self.num_groups,),
            "query_head": (self.num_groups, self.heads_per_group),
        }
        return torch.ones(shapes.get(axis, (1,)), device=self.device)

    def expected_parameters(self) -> Tensor:
        """Parameters that are left, in the mean over what may be drawn; differentiable."""
        channels = self.open("intermediate").sum() * self.channel_cost
        heads_K = self.open("query_head").sum(dim=1) * self.head_cost
        groups = (self.open("kv_group") * (self.group_cost + heads_K)).sum()
        return self.open("layer").squeeze() * (self.cost + channels + groups)

    def head_values(self) -> Tensor:
        """What each query head is multiplied with [K * R]."""
        ones_KR = torch.ones(self.num_groups, self.heads_per_group, device=self.device)
        heads, groups = self.masks.get("query_head"), self.masks.get("kv_group")
        values_KR = ones_KR if heads is None else heads.values
        return (values_KR if groups is None else values_KR * groups.values[:, None]).flatten()

    def scores(self) -> LayerScores:
        """How likely each group is to be open, times its parameters."""
        with torch.no_grad():
            channels_F = self.open("intermediate") * self.channel_cost
            heads_KR = self.open("query_head") * self.open("kv_group")[:, None]
            groups_K = self.open("kv_group") * self.group_cost + heads_KR.sum(1) * self.head_cost
            return LayerScores(
                intermediate=channels_F.cpu(),
                kv_groups=groups_K.cpu(),
                query_heads=(heads_KR * self.head_cost).cpu(),
                attention_importance=groups_K.sum().item(),
                mlp_importance=channels_F.sum().item(),
                layer_importance=self.open("layer").item() * self.num_parameters,
            )

    def shut(self, plan: LayerPlan, *, stays: bool) -> None:
        """Shut what `plan`, counted in this layer, takes; what stays of the depth stays whole."""
        for axis, mask in self.masks.items():
            kept = torch.zeros_like(mask.values)
            if axis == "layer":
                mask.set(kept + float(stays))
                continue
            if axis == "intermediate":
                kept[list(plan.intermediate)] = 1
            elif axis == "kv_group":
                kept[list(plan.kv_groups)] = 1
            else:
                every = (tuple(range(self.heads_per_group)),) * len(plan.kv_groups)
                for group, heads in zip(plan.kv_groups, plan.query_heads or every, strict=True):
                    kept[group, list(heads)] = 1
            mask.set(mask.values.detach() * kept)


class Masks:
    """The masks of a whole model, which they change only where `applied`.

    Layers at the positions `spared` have none. `hidden` [D] masks the residual stream.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        axes: tuple[Axis, ...],
        *,
        spared: frozenset[int] = frozenset(),
    ) -> None:
        self._model = model
        self._adapter = adapter_for(model.config)
        self._decoders = self._adapter.layers(model)
        self._hidden_size: int = model.config.hidden_size
        embeddings = model.get_input_embeddings().weight
        self.hidden = (
            Mask.opened((self._hidden_size,), embeddings.device) if "hidden" in axes else None
        )
        in_layers = tuple(axis for axis in axes if axis != "hidden")
        self.layers = tuple(
            self._masks_of(layer, () if index in spared else in_layers)
            for index, layer in enumerate(self._decoders)
        )

    def all(self) -> list[Mask]:
        """Every mask, in a fixed order."""
        masks = [mask for layer in self.layers for mask in layer.masks.values()]
        return masks if self.hidden is None else [self.hidden, *masks]

    def draw(self, generator: np.random.Generator) -> None:
        """Take new values, differentiable in the log-odds, for the next step."""
        for mask in self.all():
            with torch.no_grad():
                mask.log_odds.clamp_(-MAX_LOG_ODDS, MAX_LOG_ODDS)
            noise = torch.from_numpy(generator.random(tuple(mask.log_odds.shape)))
            mask.drawn = sampled(mask.log_odds, noise.to(mask.log_odds))
            mask.set(mask.drawn)

    def take_drawn(self) -> None:
        """Take the values drawn last again."""
        for mask in self.all():
            mask.set(mask.drawn)

    def settle(self, plan: PruningPlan | None = None) -> None:
        """Take the values that stand for the masks without noise.

        With a `plan`, counted in the model as it stands: what it takes is shut altogether.
        """
        for mask in self.all():
            mask.set(settled(mask.log_odds))
        if plan is not None:
            living = plan.living
            for index, layer in enumerate(self.layers):
                layer.shut(plan.layers[index], stays=index in living)
            if self.hidden is not None:
                kept = torch.zeros_like(self.hidden.values)
                kept[list(range(len(kept)) if plan.hidden is None else plan.hidden)] = 1
                # Embeddings shared with the head could not be scaled for one of them alone.
                self.hidden.set(kept)

    def backward(self, penalty: Tensor) -> None:
        """Carry the loss's gradient from the values on to the log-odds, and that of `penalty`.

        A step whose gradient was not finite was undone, and teaches nothing.
        """
        torch.autograd.backward(penalty, retain_graph=True)
        for mask in self.all():
            grad = mask.values.grad
            if grad is not None and bool(grad.isfinite().all()):
                torch.autograd.backward(mask.drawn, grad)
            mask.values.grad = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Multiply the model's activations with the values as they are whenever it runs."""
        handles = [
            tensor.module.register_forward_pre_hook(self._scaler(key))
            for key, tensor in output_projections(self._model).items()
            if self._is_masked(key)
        ]
        for layer, masks in zip(self._decoders, self.layers, strict=True):
            if "layer" in masks.masks:
                handles.append(layer.register_forward_hook(_blender(masks.masks["layer"])))
        if self.hidden is not None:
            writers = [tensor.module for tensor in output_projections(self._model).values()]
            for module in [self._model.get_input_embeddings(), *writers]:
                handles.append(module.register_forward_hook(_multiplier(self.hidden)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def input_factors(self) -> dict[BlockKey, Tensor]:
        """What the inputs of each masked output projection are multiplied with now [I]."""
        keys = output_projections(self._model)
        return {key: self._factors(key).detach().clone() for key in keys if self._is_masked(key)}

    def scores(self) -> Scores:
        """What allocation decides by."""
        layers = tuple(layer.scores() for layer in self.layers)
        if self.hidden is None:
            return Scores(layers)
        return Scores(layers, hidden=self.hidden.open.detach().cpu())

    def open_hidden(self) -> Tensor:
        """How likely the channels of the residual stream are to be open [D]."""
        if self.hidden is None:
            return torch.ones(self._hidden_size, device=self.layers[0].device)
        return self.hidden.open

    def expected_share(self) -> Tensor:
        """The share of the layers' parameters that is left, in the mean; differentiable."""
        expected = torch.stack([layer.expected_parameters() for layer in self.layers]).sum()
        whole = sum(layer.num_parameters for layer in self.layers)
        # But for biases, every parameter is as often there as there are hidden channels.
        return expected / whole * self.open_hidden().mean()

    def _masks_of(self, layer: nn.Module, axes: tuple[Axis, ...]) -> LayerMasks:
        adapter, device = self._adapter, next(layer.parameters()).device
        channels = adapter.num_groups(layer, "intermediate")
        groups, heads = adapter.num_groups(layer, "kv_group"), adapter.query_heads_per_group(layer)
        shapes: dict[Axis, tuple[int, ...]] = {
            "intermediate": (channels,),
            "kv_group": (groups,),
            "query_head": (groups, heads),
            "layer": (1,),
        }
        channel_cost = adapter.group_cost(layer, "intermediate")
        whole_group_cost = adapter.group_cost(layer, "kv_group")
        head_cost = adapter.group_cost(layer, "query_head")
        in_groups = channels * channel_cost + groups * whole_group_cost
        return LayerMasks(
            masks={axis: Mask.opened(shapes[axis], device) for axis in axes},
            num_channels=channels,
            num_groups=groups,
            heads_per_group=heads,
            channel_cost=channel_cost,
            group_cost=whole_group_cost - heads * head_cost,
            head_cost=head_cost,
            cost=sum(parameter.numel() for parameter in layer.parameters()) - in_groups,
            device=device,
        )

    def _is_masked(self, key: BlockKey) -> bool:
        index, block = key
        masks = self.layers[index].masks
        if block == "intermediate":
            return "intermediate" in masks
        return "kv_group" in masks or "query_head" in masks

    def _factors(self, key: BlockKey) -> Tensor:
        index, block = key
        if block == "intermediate":
            return self.layers[index].masks[block].values
        return self.layers[index].head_values().repeat_interleave(self._adapter.head_dim)

    def _scaler(
        self, key: BlockKey
    ) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def scale(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0] * self._factors(key).to(args[0].dtype), *args[1:])

        return scale


def _multiplier(mask: Mask) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def multiply(_module: nn.Module, _args: object, output_BTD: Tensor) -> Tensor:
        return output_BTD * mask.values.to(output_BTD.dtype)

    return multiply


def _blender(mask: Mask) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """How much of a layer's change of the residual stream is let through."""

    def blend(_module: nn.Module, args: tuple[Tensor, ...], output_BTD: Tensor) -> Tensor:
        # Both blocks at once, and after any norm behind them.
        return torch.lerp(args[0], output_BTD, mask.values.to(output_BTD.dtype))

    return blend
