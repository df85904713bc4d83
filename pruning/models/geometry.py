"""Sizes of a model as pure data: allocation counts parameters without touching tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pruning.events import LayerWidths
from pruning.models.adapter import AXES, Adapter, adapter_for
from pruning.models.hidden import outer_stream_tensors, stream_tensors
from pruning.plan import LayerPlan, PruningPlan
from pruning.recipe_parts.method import Axis


@dataclass(frozen=True)
class Geometry:
    """Parameters outside the layers, and the cost of one group per layer and axis.

    A KV group counts with all its `query_heads_per_group`, a channel of experts as one of them has
    it, an expert as its row of the router: so that one `Geometry` serves all increments of a run.
    """

    num_fixed_parameters: int
    group_costs: tuple[dict[Axis, int], ...]
    query_heads_per_group: tuple[int, ...]
    layer_costs: tuple[int, ...]
    """Of each layer, the parameters outside every group, which go with the whole layer."""
    experts_per_token: int = 0
    """No layer of experts keeps fewer."""
    hidden_size: int = 0
    hidden_divisor: int = 1
    """What the architecture wants hidden sizes to be multiples of."""
    shortcuts: int = 0
    """Matrices between two bases of the stream that come with narrowing it."""
    per_hidden: "Geometry | None" = None
    """All numbers of parameters again, of one hidden channel."""

    def narrowed(self, plan: PruningPlan) -> "Geometry":
        """The same of a model with the hidden channels that `plan` keeps."""
        slope = self.per_hidden
        if plan.hidden is None or slope is None or len(plan.hidden) == self.hidden_size:
            return self
        lost = self.hidden_size - len(plan.hidden)
        return replace(
            self,
            num_fixed_parameters=self.num_fixed_parameters - lost * slope.num_fixed_parameters,
            group_costs=tuple(
                {axis: costs[axis] - lost * slopes[axis] for axis in costs}
                for costs, slopes in zip(self.group_costs, slope.group_costs, strict=True)
            ),
            layer_costs=tuple(
                cost - lost * of_one
                for cost, of_one in zip(self.layer_costs, slope.layer_costs, strict=True)
            ),
            hidden_size=len(plan.hidden),
        )

    def num_parameters(self, plan: PruningPlan) -> int:
        """What the model counts after `plan`, tied parameters once."""
        narrow = self.narrowed(plan)
        width = 0 if plan.hidden is None else len(plan.hidden)
        shortcuts = self.shortcuts * width**2
        return (
            shortcuts
            + narrow.num_fixed_parameters
            + sum(narrow.layer_parameters(index, plan.layers[index]) for index in plan.living)
        )

    def layer_parameters(self, index: int, layer: LayerPlan) -> int:
        """Parameters of a layer that stays."""
        channels = len(layer.intermediate) * self.channel_cost(index, layer)
        rows = len(layer.experts) * self.group_costs[index].get("expert", 0)
        group_cost = self.kv_group_cost(index, self.heads_per_group(index, layer))
        return self.layer_costs[index] + channels + rows + len(layer.kv_groups) * group_cost

    def channel_cost(self, index: int, layer: LayerPlan) -> int:
        """Parameters of an intermediate channel, in all experts that a layer's plan keeps."""
        return max(1, len(layer.experts)) * self.group_costs[index]["intermediate"]

    def expert_cost(self, index: int, layer: LayerPlan) -> int:
        """Parameters of an expert with the channels that a layer's plan keeps."""
        costs = self.group_costs[index]
        return costs["expert"] + len(layer.intermediate) * costs["intermediate"]

    def heads_per_group(self, index: int, layer: LayerPlan) -> int:
        """Query heads that a layer's plan keeps in each KV group."""
        return len(layer.query_heads[0]) if layer.query_heads else self.query_heads_per_group[index]

    def kept_query_heads(self, index: int, layer: LayerPlan) -> tuple[tuple[int, ...], ...]:
        """Query heads that a layer's plan keeps, of each kept KV group."""
        every = tuple(range(self.query_heads_per_group[index]))
        return layer.query_heads or (every,) * len(layer.kv_groups)

    def kv_group_cost(self, index: int, heads_per_group: int) -> int:
        """Parameters of a KV group that has some of its query heads left."""
        lost = self.query_heads_per_group[index] - heads_per_group
        return self.group_costs[index]["kv_group"] - lost * self.group_costs[index]["query_head"]

    def widths(self, plan: PruningPlan) -> tuple[LayerWidths, ...]:
        """The sizes of the layers that `plan` leaves."""
        return tuple(self._widths(index, plan.layers[index]) for index in plan.living)

    def _widths(self, index: int, layer: LayerPlan) -> LayerWidths:
        return LayerWidths(
            intermediate_size=len(layer.intermediate),
            num_attention_heads=len(layer.kv_groups) * self.heads_per_group(index, layer),
            num_key_value_heads=len(layer.kv_groups),
            num_experts=len(layer.experts) or None,
        )


def geometry_of(model: PreTrainedModel, plan: PruningPlan | None = None) -> Geometry:
    """Measure a model. Valid before and after any cut of it.

    `plan` is the plan it is at, needed where whole layers are gone: nothing is known of those.
    """
    adapter = adapter_for(model.config)
    layers = adapter.layers(model)
    living = range(len(layers)) if plan is None else plan.living
    number = len(layers) if plan is None else len(plan.layers)
    every = dict(zip(living, (_measure(adapter, layer) for layer in layers), strict=True))
    in_layers = sum(_count_once(layer.parameters()) for layer in layers)
    outer = [tensor.parameter for tensor in outer_stream_tensors(adapter, model)]
    hidden_size = model.config.hidden_size
    whole = _assemble(
        count_parameters(model) - in_layers, [every.get(i, _GONE).whole for i in range(number)]
    )
    return replace(
        whole,
        experts_per_token=getattr(model.config, "num_experts_per_tok", 0) or 0,
        hidden_size=hidden_size,
        hidden_divisor=_hidden_divisor(adapter, model.config),
        per_hidden=_assemble(
            _count_once(outer) // hidden_size,
            [every.get(i, _GONE).per_hidden for i in range(number)],
        ),
    )


@dataclass(frozen=True)
class _LayerCosts:
    group_costs: dict[Axis, int]
    query_heads_per_group: int
    rest: int


@dataclass(frozen=True)
class _LayerGeometry:
    whole: _LayerCosts
    per_hidden: _LayerCosts


_NOTHING = _LayerCosts(dict.fromkeys(AXES, 0), 0, 0)
_GONE = _LayerGeometry(_NOTHING, _NOTHING)


def _assemble(num_fixed_parameters: int, layers: Sequence[_LayerCosts]) -> Geometry:
    return Geometry(
        num_fixed_parameters=num_fixed_parameters,
        group_costs=tuple(layer.group_costs for layer in layers),
        query_heads_per_group=tuple(layer.query_heads_per_group for layer in layers),
        layer_costs=tuple(layer.rest for layer in layers),
    )


def _measure(adapter: Adapter, layer: nn.Module) -> _LayerGeometry:
    grouped = [t.parameter for tensors in adapter.by_span(layer).values() for t in tensors]
    in_stream = [tensor.parameter for tensor in stream_tensors(adapter, layer)]
    hidden_size = in_stream[-1].numel()  # A norm's.
    outside = set(in_stream) - set(grouped)
    heads = adapter.query_heads_per_group(layer)
    return _LayerGeometry(
        whole=_LayerCosts(
            {axis: adapter.group_cost(layer, axis) for axis in AXES},
            heads,
            _count_once(layer.parameters()) - _count_once(grouped) + 2 * adapter.carried**2,
        ),
        per_hidden=_LayerCosts(
            {axis: adapter.group_cost(layer, axis, per_hidden=hidden_size) for axis in AXES},
            heads,
            _count_once(outside) // hidden_size,
        ),
    )


def _hidden_divisor(adapter: Adapter, config: PretrainedConfig) -> int:
    """Architectures that check it want the hidden size to divide by the number of heads."""
    if not adapter.family.heads_divide_hidden_size:
        return 1
    return int(config.num_attention_heads)


def unpruned_plan(model: PreTrainedModel) -> PruningPlan:
    """The plan that keeps every group of the model as it stands, which makes it the base model."""
    adapter = adapter_for(model.config)
    return PruningPlan(layers=tuple(_keep_all(adapter, layer) for layer in adapter.layers(model)))


def _keep_all(adapter: Adapter, layer: nn.Module) -> LayerPlan:
    return LayerPlan(
        intermediate=tuple(range(adapter.num_groups(layer, "intermediate"))),
        kv_groups=tuple(range(adapter.num_groups(layer, "kv_group"))),
        experts=tuple(range(adapter.num_groups(layer, "expert"))),
    )


def layer_widths(model: PreTrainedModel) -> tuple[LayerWidths, ...]:
    """The sizes of each decoder layer, read from its tensors."""
    adapter = adapter_for(model.config)
    return tuple(adapter.widths(layer) for layer in adapter.layers(model))


def count_parameters(model: nn.Module) -> int:
    """All parameters, those that share a storage once."""
    return _count_once(model.parameters())


def count_prunable_parameters(model: PreTrainedModel) -> int:
    """Parameters of the decoder layers: what `Target.sparsity` is a share of."""
    adapter = adapter_for(model.config)
    return _count_once(p for layer in adapter.layers(model) for p in layer.parameters())


def _count_once(parameters: Iterable[nn.Parameter]) -> int:
    # Tensors on the meta device all report address 0.
    return sum({p.data_ptr() or id(p): p.numel() for p in parameters}.values())
