"""Taylor importance (Molchanov et al. 2017; LLM-Pruner, arXiv 2305.11627 eq. 5)."""

import torch

from pruning.recipe_parts.method import TaylorOrder


def taylor_importance(
    weight: torch.Tensor, grad: torch.Tensor, order: TaylorOrder = "first"
) -> torch.Tensor:
    """How much the loss changes without each entry, fp32, by the gradient of one micro-batch.

    `first` |w g|; `second` (w g)^2, whose sum over micro-batches is w^2 times the diagonal Fisher;
    `mix` |w g - (w g)^2 / 2|. One micro-batch at a time: summing gradients first would let opposite
    signs cancel.
    """
    # Half-precision products below 6e-8 vanish, and with them the ranking of unimportant groups.
    change = weight.float() * grad.float()
    if order == "first":
        return change.abs()
    if order == "second":
        return change.square()
    return (change - change.square() / 2).abs()
