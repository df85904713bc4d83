"""An exponential moving average of the weights, kept beside Adam's moments and cut with them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pruning.ranks import in_parts, whole

AVERAGE = "average"
"""Its key in the optimizer's state, and in a checkpoint's."""


@torch.no_grad()
def follow(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Move the averages, after a step, by 1 - decay of the way to the weights."""
    for parameter, state in _states(optimizer):
        if AVERAGE in state:
            state[AVERAGE].lerp_(parameter.detach(), 1 - decay)
        else:
            state[AVERAGE] = parameter.detach().clone()


def averages(moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of what a checkpoint holds of an optimizer, the averages by the names of the weights."""
    prefix = f"{AVERAGE}."
    return {
        name.removeprefix(prefix): moment
        for name, moment in moments.items()
        if name.startswith(prefix)
    }


@contextmanager
def averaged(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the model's weights are their averages, where there are any."""
    weights = {}
    for parameter in model.parameters():
        average = optimizer.state.get(parameter, {}).get(AVERAGE)
        if average is not None:
            weights[parameter] = parameter.data
            parameter.data = whole(average)
    try:
        yield
    finally:
        for parameter, weight in weights.items():
            parameter.data = weight


@contextmanager
def keeping_distance(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """What changes the weights inside, other than training, changes their averages as much."""
    _add_weights(optimizer, -1.0)
    yield
    _add_weights(optimizer, 1.0)


@torch.no_grad()
def _add_weights(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for parameter, state in _states(optimizer):
        if AVERAGE in state:
            average, weight = state[AVERAGE], parameter.detach()
            if isinstance(average, DTensor):
                weight = in_parts(weight, average.device_mesh)
            average.add_(weight, alpha=factor)


def _states(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[nn.Parameter, dict[str, Tensor]]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in optimizer.state:
                yield parameter, optimizer.state[parameter]
