"""Sizes of a model as pure data: allocation counts parameters without touching tensors."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from pruning.events import LayerWidths
from pruning.models.adapter import AXES, Adapter, adapter_for
from pruning.plan import LayerPlan, PruningPlan
from pruning.recipe import Axis


@dataclass(frozen=True)
class Geometry:
    """Parameters outside the layers, and the cost of one group per layer and axis.

    A KV group counts with all its `query_heads_per_group`, so that one `Geometry` serves all
    increments of a run.
    """

    num_fixed_parameters: int
    group_costs: tuple[dict[Axis, int], ...]
    query_heads_per_group: tuple[int, ...]
    layer_costs: tuple[int, ...]
    """Of each layer, the parameters outside every group, which go with the whole layer."""

    def num_parameters(self, plan: PruningPlan) -> int:
        """What the model counts after `plan`, tied parameters once."""
        return self.num_fixed_parameters + sum(
            self.layer_parameters(index, plan.layers[index]) for index in plan.living
        )

    def layer_parameters(self, index: int, layer: LayerPlan) -> int:
        """Parameters of a layer that stays."""
        channels = len(layer.intermediate) * self.group_costs[index]["intermediate"]
        group_cost = self.kv_group_cost(index, self.heads_per_group(index, layer))
        return self.layer_costs[index] + channels + len(layer.kv_groups) * group_cost

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
        )


def geometry_of(model: PreTrainedModel, plan: PruningPlan | None = None) -> Geometry:
    """Measure a model. Valid before and after any cut of it.

    `plan` is the plan it is at, needed where whole layers are gone: nothing is known of those.
    """
    adapter = adapter_for(model.config)
    layers = adapter.layers(model)
    living = range(len(layers)) if plan is None else plan.living
    found = dict(zip(living, (_measure(adapter, layer) for layer in layers), strict=True))
    gone = _LayerGeometry(dict.fromkeys(AXES, 0), 0, 0)
    every = [found.get(i, gone) for i in range(len(layers) if plan is None else len(plan.layers))]
    in_layers = sum(_count_once(layer.parameters()) for layer in layers)
    return Geometry(
        num_fixed_parameters=count_parameters(model) - in_layers,
        group_costs=tuple(layer.group_costs for layer in every),
        query_heads_per_group=tuple(layer.query_heads_per_group for layer in every),
        layer_costs=tuple(layer.cost for layer in every),
    )


@dataclass(frozen=True)
class _LayerGeometry:
    group_costs: dict[Axis, int]
    query_heads_per_group: int
    cost: int


def _measure(adapter: Adapter, layer: nn.Module) -> _LayerGeometry:
    in_groups = sum(
        tensor.num_groups * tensor.entries_per_group
        for tensors in adapter.by_span(layer).values()
        for tensor in tensors
    )
    return _LayerGeometry(
        group_costs={axis: adapter.group_cost(layer, axis) for axis in AXES},
        query_heads_per_group=adapter.query_heads_per_group(layer),
        cost=_count_once(layer.parameters()) - in_groups,
    )


def unpruned_plan(model: PreTrainedModel) -> PruningPlan:
    """The plan that keeps every group of the model as it stands, which makes it the base model."""
    adapter = adapter_for(model.config)
    return PruningPlan(layers=tuple(_keep_all(adapter, layer) for layer in adapter.layers(model)))


def _keep_all(adapter: Adapter, layer: nn.Module) -> LayerPlan:
    return LayerPlan(
        intermediate=tuple(range(adapter.num_groups(layer, "intermediate"))),
        kv_groups=tuple(range(adapter.num_groups(layer, "kv_group"))),
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
