"""The last good state of training, kept in main memory to roll back to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Copies of weights, moments and sampler cursor after `step` optimizer steps."""

    step: int
    num_tokens: int
    weights: tuple[Tensor, ...]
    moments: tuple[Mapping[str, Tensor], ...]
    sampler: Mapping[str, Any]

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write weights and moments back in place."""
        for parameter, weight, moments in zip(
            model.parameters(), self.weights, self.moments, strict=True
        ):
            parameter.copy_(weight)
            optimizer.state[parameter] = {
                name: moment.to(optimizer.state[parameter][name].device, copy=True)
                for name, moment in moments.items()
            }


@torch.no_grad()
def take_snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    num_tokens: int,
    sampler: Mapping[str, Any],
) -> Snapshot:
    """Copy what `Snapshot` holds; about 12 bytes per parameter."""
    parameters = list(model.parameters())
    return Snapshot(
        step=step,
        num_tokens=num_tokens,
        weights=tuple(p.detach().to("cpu", copy=True) for p in parameters),
        moments=tuple(
            {name: t.to("cpu", copy=True) for name, t in optimizer.state.get(p, {}).items()}
            for p in parameters
        ),
        sampler=sampler,
    )
