"""Training with weights, gradients and moments spread over ranks (FSDP2), layer by layer.

Between two trainings every rank holds the whole weights, so that measuring and cutting know nothing
of it; Adam's moments stay spread, and a cut gathers one of them at a time.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from pruning.models.adapter import adapter_for
from pruning.ranks import Ranks, in_parts, whole

T = TypeVar("T")


class WithLoss(nn.Module):
    """A model whose forward pass ends in a loss, so that FSDP gathers its output head for it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[PreTrainedModel], T]) -> T:
        """What a function makes of the model, all of whose weights are there meanwhile."""
        return function(self.model)


@contextmanager
def sharded(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> Iterator[WithLoss]:
    """The model to train inside; `model` itself is empty meanwhile and holds the result afterwards.

    The optimizer's parameters are those of the model to train while inside.
    """
    if ranks.mesh is None:
        yield WithLoss(model)
        return
    # Parameters are not copied, they are what is about to be cut in parts.
    memo = {id(parameter): parameter for parameter in model.parameters()}
    spread = WithLoss(copy.deepcopy(model, memo))
    _shard(spread, ranks.mesh)
    wholes, parts = dict(model.named_parameters()), dict(spread.model.named_parameters())
    _point(optimizer, {wholes[name]: parts[name] for name in wholes}, ranks.mesh)
    with _emptied(wholes, parts):
        yield spread
    _point(optimizer, {parts[name]: wholes[name] for name in wholes}, ranks.mesh)


def _shard(spread: WithLoss, mesh: DeviceMesh) -> None:
    """One FSDP unit per decoder layer, and one for embeddings, norm and output head."""
    for layer in adapter_for(spread.model.config).layers(spread.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(spread, mesh=mesh)
    for module in spread.modules():
        if isinstance(module, FSDPModule):
            # Each rank's loss is its part of the batch's, so gradients add up.
            module.set_gradient_divide_factor(1.0)
            # gloo knows no other way.
            module.set_force_sum_reduction_for_comms(True)


def _point(
    optimizer: torch.optim.Optimizer,
    successors: Mapping[nn.Parameter, nn.Parameter],
    mesh: DeviceMesh,
) -> None:
    """Let an optimizer go on with other tensors of the same parameters; moments are in parts."""
    for group in optimizer.param_groups:
        group["params"] = [successors[parameter] for parameter in group["params"]]
    for old, new in successors.items():
        if old in optimizer.state:
            optimizer.state[new] = {
                key: in_parts(value, mesh)
                if value.dim() and not isinstance(value, DTensor)
                else value
                for key, value in optimizer.state.pop(old).items()
            }


@contextmanager
def _emptied(
    wholes: Mapping[str, nn.Parameter], parts: Mapping[str, nn.Parameter]
) -> Iterator[None]:
    """Free the memory of the whole parameters inside, and fill them from their parts afterwards."""
    for parameter in wholes.values():
        parameter.grad = None
        # Still of the same shape, for those who count.
        parameter.data = parameter.data.new_empty(1).expand(parameter.shape)
    yield
    for name, parameter in wholes.items():
        parameter.data = whole(parts[name].detach())
