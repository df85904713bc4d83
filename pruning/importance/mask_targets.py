"""What learned masks are held to, by Lagrange multipliers (Sheared-LLaMA, arXiv 2310.06694 §3.1).

The penalty of a constraint is `a v + b v^2`, v by how much it is missed as a share; the masks go
down on it and the multipliers a, b up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pruning.events import LayerWidths
from pruning.importance.masks import Masks
from pruning.recipe_parts.method import Axis


class MaskTarget(Protocol):
    """What the masks are to take in the end."""

    def violations(self, masks: Masks, ramp: float) -> list[Tensor]:
        """Of each constraint, the share closed beyond `ramp` times what is to be closed [rows]."""
        ...


@dataclass(frozen=True)
class ShapeTarget:
    """The same shares of every layer's groups, of the layers and of the stream: an exact shape."""

    closed: Mapping[Axis, float]

    def violations(self, masks: Masks, ramp: float) -> list[Tensor]:
        """One row for each layer, of query heads for each KV group too; else a single one."""
        return [_closed(masks, axis) - ramp * share for axis, share in self.closed.items()]


@dataclass(frozen=True)
class SizeTarget:
    """A share of the parameters of all layers, wherever they are."""

    closed: float

    def violations(self, masks: Masks, ramp: float) -> list[Tensor]:
        """A single one."""
        return [(1 - masks.expected_share() - ramp * self.closed)[None]]


@dataclass(frozen=True)
class Targets:
    """Several at once."""

    parts: tuple[MaskTarget, ...]

    def violations(self, masks: Masks, ramp: float) -> list[Tensor]:
        """Of all of them."""
        return [missed for part in self.parts for missed in part.violations(masks, ramp)]


class Multipliers:
    """One pair of multipliers for each constraint, and how they climb."""

    def __init__(
        self, num_constraints: int, *, learning_rate: float, betas: tuple[float, float]
    ) -> None:
        self._learning_rate = learning_rate
        self._pairs = torch.zeros(num_constraints, 2, requires_grad=True)
        self._optimizer = torch.optim.Adam(
            [self._pairs], lr=learning_rate, betas=betas, maximize=True
        )

    def penalty(self, violations: Sequence[Tensor]) -> Tensor:
        """The Lagrangian's term, of the masks and of the multipliers."""
        return torch.stack(
            [
                linear * missed.mean() + quadratic * missed.square().mean()
                for (linear, quadratic), missed in zip(
                    self._pairs.to(violations[0].device), violations, strict=True
                )
            ]
        ).sum()

    def climb(self, rate: float) -> None:
        """One step of ascent along the gradient of the last penalty, `rate` of a whole one."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * rate
        self._optimizer.step()
        self._optimizer.zero_grad()


def target_shares(now: LayerWidths, after: LayerWidths) -> dict[Axis, float]:
    """Shares of channels, KV groups and of the query heads in each that a layer is to lose."""
    heads_now = now.num_attention_heads // now.num_key_value_heads
    heads_after = after.num_attention_heads // after.num_key_value_heads
    return {
        "intermediate": 1 - after.intermediate_size / now.intermediate_size,
        "kv_group": 1 - after.num_key_value_heads / now.num_key_value_heads,
        "query_head": 1 - heads_after / heads_now,
    }


def _closed(masks: Masks, axis: Axis) -> Tensor:
    """The share of masks that is closed, by row."""
    if axis == "hidden":
        return 1 - masks.open_hidden().mean()[None]
    opened = [layer.open(axis) for layer in masks.layers if axis in layer.masks]
    if axis == "layer":
        return 1 - torch.cat(opened).mean()[None]
    return 1 - torch.cat([rows.mean(dim=-1).flatten() for rows in opened])
