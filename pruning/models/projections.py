"""The linear layers that write a block's result into the residual stream, one per block."""

from torch import nn
from transformers import PreTrainedModel

from pruning.models.adapter import Adapter, GroupedTensor, adapter_for
from pruning.recipe_parts.method import Axis

BLOCK_AXES: tuple[Axis, ...] = ("intermediate", "kv_group")
"""The coarsest axis of each block: its groups are columns of the block's output projection."""

BlockKey = tuple[int, Axis]
"""A block of a model: the layer, and the coarsest axis that thins it out."""


def output_projection(adapter: Adapter, layer: nn.Module, axis: Axis) -> GroupedTensor:
    """The weight [out, in] of `layer` that loses inputs along `axis`; the others lose outputs."""
    (found,) = (tensor for tensor in adapter.tensors(layer, axis) if tensor.side == "inputs")
    return found


def output_projections(model: PreTrainedModel) -> dict[BlockKey, GroupedTensor]:
    """The output projection of every block of a model."""
    adapter = adapter_for(model.config)
    return {
        (index, axis): output_projection(adapter, layer, axis)
        for index, layer in enumerate(adapter.layers(model))
        for axis in BLOCK_AXES
    }
