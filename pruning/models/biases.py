"""Room for a constant in what a block writes to the residual stream."""

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.errors import UnsupportedModel
from pruning.models.adapter import adapter_for
from pruning.models.families import FAMILIES


def add_biases(model: PreTrainedModel) -> None:
    """Give every projection of a block a bias of zero, in place; the model computes the same.

    All of them, because a configuration knows only whether all projections of a block have one.

    Raises:
        UnsupportedModel: the family's own code has no such biases, so nothing could open the model.
    """
    adapter = adapter_for(model.config)
    if not adapter.family.bias_flags:
        able = sorted(name for name, family in FAMILIES.items() if family.bias_flags)
        raise UnsupportedModel(
            f"{model.config.model_type} has no biases that could make good for a cut",
            param="compensation",
            hint=f"compensation 'least_squares' or 'none', or one of {', '.join(able)}",
        )
    for layer in adapter.layers(model):
        for tensors in adapter.by_span(layer).values():
            for module in (tensor.module for tensor in tensors):
                if isinstance(module, nn.Linear) and module.bias is None:
                    zeros = torch.zeros_like(module.weight[:, 0])
                    module.register_parameter("bias", nn.Parameter(zeros))
    for flag in adapter.family.bias_flags:
        setattr(model.config, flag, True)
