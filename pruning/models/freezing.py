"""Running a model for what it shows, without anything of it wanting to change."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight wants a gradient, dropout is off; flags and mode are given back afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    was_training = model.training
    model.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
