"""The last good state of training, kept in main memory to roll back to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.ranks import own_part


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Copies of weights and sampler cursor after `step` optimizer steps; 4 bytes per parameter.

    Each rank keeps its own part.

    Adam's moments are left out, at two thirds of the memory: only finite, clipped gradients ever
    reach them. Those of the steps undone make the next ones smaller, and are soon forgotten.
    """

    step: int
    num_tokens: int
    weights: tuple[Tensor, ...]
    sampler: Mapping[str, Any]

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Write the weights back in place."""
        for parameter, weight in zip(model.parameters(), self.weights, strict=True):
            own_part(parameter).copy_(weight)


@torch.no_grad()
def take_snapshot(
    model: nn.Module, *, step: int, num_tokens: int, sampler: Mapping[str, Any]
) -> Snapshot:
    """Copy what `Snapshot` holds."""
    return Snapshot(
        step=step,
        num_tokens=num_tokens,
        weights=tuple(own_part(p.detach()).to("cpu", copy=True) for p in model.parameters()),
        sampler=sampler,
    )
