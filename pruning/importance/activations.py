"""Criteria of the inputs of a block's output projection: one forward pass, no gradients.

Shapes: B batch, T sequence, N tokens, C input channels of a projection, O its outputs.
"""

from dataclasses import dataclass, field

import torch


@dataclass
class ChannelMoments:
    """Moments of a stream of activations per channel, the same however batched, in fp64."""

    num_tokens: int = 0
    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    """Sum of squared deviations from the mean [C]."""
    sequences: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    """Sum over sequences of the squared mean absolute activation [C]."""

    @torch.no_grad()
    def add(self, inputs_BTC: torch.Tensor) -> None:
        """Merge a batch (Chan et al. 1979): a difference of sums would lose small variances."""
        inputs_BTC = inputs_BTC.detach().double()
        rows_NC = inputs_BTC.flatten(0, -2)
        mean_C = rows_NC.mean(dim=0)
        squares_C = (rows_NC - mean_C).square().sum(dim=0)
        total = self.num_tokens + len(rows_NC)
        apart_C = mean_C - self.mean.to(mean_C)
        self.squares = (
            self.squares.to(mean_C)
            + squares_C
            + apart_C.square() * (self.num_tokens * len(rows_NC) / total)
        )
        self.mean = self.mean.to(mean_C) + apart_C * (len(rows_NC) / total)
        self.sequences = self.sequences.to(mean_C) + inputs_BTC.abs().mean(dim=-2).square().sum(0)
        self.num_tokens = total

    def variance(self) -> torch.Tensor:
        """Unbiased, fp64 [C]."""
        return self.squares / max(1, self.num_tokens - 1)

    def norm(self) -> torch.Tensor:
        """Euclidean norm over all tokens, fp64 [C]."""
        return (self.squares + self.num_tokens * self.mean.square()).sqrt()


def fluctuation_importance(variance_C: torch.Tensor, weight_OC: torch.Tensor) -> torch.Tensor:
    """Var(x_c) * ||W_:c||^2, fp32 [C]: what replacing a channel by its mean costs.

    FLAP's WIFV (arXiv 2312.11983 eq. 5).
    """
    return (variance_C * weight_OC.double().square().sum(dim=0)).float()


def wanda_importance(norm_C: torch.Tensor, weight_OC: torch.Tensor) -> torch.Tensor:
    """sum_o |W_oc| * ||x_c||, fp32 [C]: Wanda (arXiv 2306.11695) summed over a structure."""
    return (norm_C * weight_OC.double().abs().sum(dim=0)).float()


def activation_importance(sequences_C: torch.Tensor) -> torch.Tensor:
    """Squared L2 norm over sequences of the mean |x_c|, fp32 [C]: Minitron (arXiv 2407.14679)."""
    return sequences_C.float()
