"""The same function with equal layers: groups of zeros up to the widest layer.

A zero channel, and a KV group whose output projection is zero, add nothing to the residual stream,
so any engine that runs the base model runs this. It saves no memory beyond the widest layer.
"""

import copy
import itertools
import math
from typing import cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pruning.errors import ExportRefused
from pruning.events import LayerWidths
from pruning.models.adapter import Adapter, adapter_for
from pruning.models.geometry import layer_widths


@torch.no_grad()
def pad_to_equal_layers(model: PreTrainedModel) -> PreTrainedModel:
    """A stock model that computes what `model` does.

    Raises:
        ExportRefused: no head count from the widest layer's up is one the architecture accepts, or
            tokens would be routed to experts of zeros.
    """
    adapter = adapter_for(model.config)
    if len({layer.num_experts for layer in layer_widths(model)}) > 1:
        raise ExportRefused("padded: experts of zeros would be routed to")
    config = _equal_config(model.config, adapter, layer_widths(model))
    with torch.random.fork_rng(devices=[]):
        padded = cast(PreTrainedModel, type(model)(config)).to(model.dtype).eval()
    shapes = {name: tensor.shape for name, tensor in padded.state_dict().items()}
    same = {k: v for k, v in model.state_dict().items() if v.shape == shapes[k]}
    padded.load_state_dict(same, strict=False)
    for wide, narrow in zip(adapter.layers(padded), adapter.layers(model), strict=True):
        _fill(adapter, wide, narrow)
    padded.generation_config = copy.deepcopy(model.generation_config)
    return padded


def _fill(adapter: Adapter, wide: nn.Module, narrow: nn.Module) -> None:
    """Copy a layer's groups to the front of a wider one's, query heads to their KV head's."""
    into, tensors = adapter.by_span(wide), adapter.by_span(narrow)
    per_group = adapter.query_heads_per_group(wide), adapter.query_heads_per_group(narrow)
    for target in itertools.chain.from_iterable(into.values()):
        target.parameter.zero_()
    for span, narrow_tensors in tensors.items():
        for target, tensor in zip(into[span], narrow_tensors, strict=True):
            groups = torch.arange(tensor.num_groups)
            if span == "query_head":
                groups = groups // per_group[1] * per_group[0] + groups % per_group[1]
            # A norm over all heads now averages over the zeros too.
            scale = math.sqrt(tensor.num_groups / target.num_groups) if tensor.normalises else 1.0
            kept = tensor.parameter.narrow(tensor.dim, tensor.start, tensor.num_entries)
            target.parameter.index_copy_(tensor.dim, target.indices(groups), kept * scale)


def _equal_config(
    config: PretrainedConfig, adapter: Adapter, widths: tuple[LayerWidths, ...]
) -> PretrainedConfig:
    """The widest of every layer; more heads where the architecture wants them to divide D."""
    equal = copy.deepcopy(config)
    equal.per_layer_config = None
    equal.__dict__.pop("allow_global_per_layer_attribute_access", None)
    equal.head_dim = adapter.head_dim
    equal.intermediate_size = max(layer.intermediate_size for layer in widths)
    most_groups = max(layer.num_key_value_heads for layer in widths)
    most_heads = max(
        layer.num_attention_heads // max(1, layer.num_key_value_heads) for layer in widths
    )
    for num_groups in range(most_groups, config.hidden_size + 1):
        equal.num_key_value_heads = num_groups
        equal.num_attention_heads = num_groups * most_heads
        # GPT-NeoX takes what the heads make of the hidden size for their own.
        whole = equal.num_attention_heads * adapter.head_dim == equal.hidden_size
        if _is_accepted(equal) and (whole or not adapter.family.derives_head_dim):
            return equal
    raise ExportRefused(f"padded: {config.model_type} accepts no {most_groups} or more KV heads")


def _is_accepted(config: PretrainedConfig) -> bool:
    try:
        config.validate_architecture()
    except ValueError:
        return False
    return True
