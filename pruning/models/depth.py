"""Taking whole decoder layers out of a model."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

_PER_LAYER_LISTS = ("layer_types", "no_rope_layers")
"""What configurations list for each layer."""


def drop_layers(
    model: PreTrainedModel, positions: Sequence[int], optimizer: torch.optim.Optimizer | None
) -> None:
    """Remove the layers at `positions` in place, and their parameters from the optimizer.

    The others are renumbered, since a layer finds its part of the KV cache by its number.
    """
    if not positions:
        return
    layers = list(model.base_model.get_submodule("layers"))
    kept = [index for index in range(len(layers)) if index not in positions]
    model.base_model.layers = nn.ModuleList(layers[index] for index in kept)
    for number, index in enumerate(kept):
        for module in layers[index].modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    _shorten(model.config, kept)
    if optimizer is not None:
        _forget(optimizer, {p for index in positions for p in layers[index].parameters()})


def _shorten(config: PretrainedConfig, kept: Sequence[int]) -> None:
    """Make the configuration describe the layers `kept`; their widths are written by surgery."""
    config.per_layer_config = None
    for name in _PER_LAYER_LISTS:
        values = getattr(config, name, None)
        if isinstance(values, list):
            setattr(config, name, [values[index] for index in kept])
    _renumber_dense_layers(config, kept)
    config.num_hidden_layers = len(kept)


def _renumber_dense_layers(config: PretrainedConfig, kept: Sequence[int]) -> None:
    """List the layers without experts, which a family otherwise finds by counting."""
    dense = getattr(config, "mlp_only_layers", None)
    if dense is None:
        return
    step = config.decoder_sparse_step
    config.mlp_only_layers = [
        number for number, index in enumerate(kept) if index in dense or (index + 1) % step
    ]
    config.decoder_sparse_step = 1


def _forget(optimizer: torch.optim.Optimizer, gone: set[nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p not in gone]
    for parameter in gone:
        optimizer.state.pop(parameter, None)
