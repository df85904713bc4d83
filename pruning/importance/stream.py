"""Importance of the channels of the residual stream, over all layers together.

Minitron (arXiv 2407.14679 eq. 3) sums what the norms put out; Taylor importance and magnitude sum
over every weight that a channel takes part in, the embeddings among them.
"""

from collections.abc import Collection

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pruning.importance.activations import ChannelMoments, activation_importance
from pruning.importance.magnitude import magnitude_importance
from pruning.importance.taylor import taylor_importance
from pruning.models.adapter import GroupedTensor, adapter_for
from pruning.models.hidden import outer_stream_tensors, stream_norms, stream_tensors
from pruning.recipe_parts.method import Importance


class StreamMeasurement:
    """Running sums over a calibration pass."""

    def __init__(self, model: PreTrainedModel, importance: Importance) -> None:
        adapter = adapter_for(model.config)
        tensors = outer_stream_tensors(adapter, model)
        for layer in adapter.layers(model):
            tensors += stream_tensors(adapter, layer)
        self.importance = importance
        self.tensors = {tensor.parameter: tensor for tensor in tensors}
        self.norms = {norm: ChannelMoments() for norm in stream_norms(adapter, model)}
        self.sums_D = torch.zeros(model.config.hidden_size, device=tensors[0].parameter.device)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.tensors)

    def watch_activations(self) -> list[RemovableHandle]:
        """Gather moments of what each norm puts out, where importance is made of them."""
        if self.importance.kind != "activation":
            return []
        return [norm.register_forward_hook(self._add) for norm in self.norms]

    def watch_gradients(self, *, kept: Collection[nn.Parameter]) -> list[RemovableHandle]:
        """Fold each gradient into the scores; free it unless it is `kept` for another hook."""

        def fold(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            order = self.importance.taylor_order
            entries = taylor_importance(parameter.detach(), parameter.grad, order)
            self.sums_D += self._tensor(parameter).sum_by_group(entries)
            if parameter not in kept:
                parameter.grad = None

        return [
            # Torch leaves this one method untyped.
            parameter.register_post_accumulate_grad_hook(fold)  # type: ignore[no-untyped-call]
            for parameter in self.tensors
        ]

    def scores(self, *, seed: int) -> torch.Tensor:
        """Of each channel [D], fp32 on the CPU."""
        if self.importance.kind == "random":
            generator = torch.Generator().manual_seed(seed)
            return torch.rand(len(self.sums_D), generator=generator)
        if self.importance.kind == "magnitude":
            for parameter, tensor in self.tensors.items():
                self.sums_D += tensor.sum_by_group(magnitude_importance(parameter.detach()))
        if self.importance.kind == "activation":
            for moments in self.norms.values():
                self.sums_D += activation_importance(moments.sequences).sqrt()
        return self.sums_D.cpu()

    def _tensor(self, parameter: torch.Tensor) -> GroupedTensor:
        assert isinstance(parameter, nn.Parameter)
        return self.tensors[parameter]

    def _add(self, norm: nn.Module, _args: object, output_BTD: torch.Tensor) -> None:
        self.norms[norm].add(output_BTD)
