"""The house criterion: what losing a group costs after repair, in nats per token, by K-FAC Fisher.

One currency for every group of every block, so that allocation needs no weights between axes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.brain_surgeon import Elimination, eliminate, output_cost
from pruning.importance.moments import Moments
from pruning.memory import give_back_memory
from pruning.models.adapter import Adapter, adapter_for
from pruning.models.projections import BLOCK_AXES, output_projection
from pruning.recipe_parts.method import Axis
from pruning.scores import LayerScores, Removal, Scores

Widths = Callable[[Axis, int], Sequence[int]]
"""The widths below today's that an axis may be cut to, descending."""


@torch.no_grad()
def fisher_scores(
    model: PreTrainedModel, moments: Moments, *, widths: Widths, ridge: float
) -> Scores:
    """Score the groups of `model` as it stands, one block at a time.

    A group's importance is what it would cost if it went alone, a block's what losing its whole
    output would cost.
    """
    adapter = adapter_for(model.config)
    scores = []
    for index, layer in enumerate(adapter.layers(model)):
        # What the pass over the text or the layer before has left are holes too small.
        give_back_memory(model.device)
        scores.append(_LayerCurves(index, adapter, layer, moments, widths, ridge).scores())
    return Scores(tuple(scores))


class _LayerCurves:
    """The eliminations of one decoder layer's two blocks."""

    def __init__(
        self,
        index: int,
        adapter: Adapter,
        layer: nn.Module,
        moments: Moments,
        widths: Widths,
        ridge: float,
    ) -> None:
        self.index, self.adapter, self.layer = index, adapter, layer
        self.moments, self.widths, self.ridge = moments, widths, ridge

    def scores(self) -> LayerScores:
        eliminations = {
            axis: self._eliminate(axis, self.widths(axis, self._num_groups(axis)))
            for axis in BLOCK_AXES
        }
        heads = self._eliminate("query_head", widths=()).scores
        attention, mlp = self._block_cost("kv_group"), self._block_cost("intermediate")
        return LayerScores(
            intermediate=_stored(eliminations["intermediate"].scores),
            kv_groups=_stored(eliminations["kv_group"].scores),
            query_heads=_stored(heads).view(self._num_groups("kv_group"), -1),
            attention_importance=attention,
            mlp_importance=mlp,
            layer_importance=attention + mlp,
            removals={
                axis: Removal(order=found.order.cpu(), costs=_stored(found.costs))
                for axis, found in eliminations.items()
            },
        )

    def _eliminate(self, axis: Axis, widths: Sequence[int]) -> Elimination:
        tensor = output_projection(self.adapter, self.layer, axis)
        inputs_II, gradients_OO = self._moments_of(axis)
        return eliminate(
            tensor.parameter.detach(),
            inputs_II,
            gradients_OO,
            group_size=tensor.repeats,
            widths=widths,
            ridge=self.ridge,
        )

    def _block_cost(self, axis: Axis) -> float:
        weight_OI = output_projection(self.adapter, self.layer, axis).parameter.detach()
        return output_cost(weight_OI, *self._moments_of(axis))

    def _moments_of(self, axis: Axis) -> tuple[Tensor, Tensor]:
        block: Axis = "intermediate" if axis == "intermediate" else "kv_group"
        key = self.index, block
        return self.moments.inputs[key], self.moments.gradients[key]

    def _num_groups(self, axis: Axis) -> int:
        return self.adapter.num_groups(self.layer, axis)


def _stored(values: Tensor) -> Tensor:
    return values.float().cpu()
