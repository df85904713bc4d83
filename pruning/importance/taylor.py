"""First-order Taylor importance (Molchanov et al. 2017; LLM-Pruner, arXiv 2305.11627 eq. 5)."""

import torch


def taylor_importance(weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """|w * dL/dw| of each entry, fp32: how much the loss changes, to first order, without it.

    One micro-batch at a time: summing gradients first would let opposite signs cancel.
    """
    # Half-precision products below 6e-8 vanish, and with them the ranking of unimportant groups.
    return (weight.float() * grad.float()).abs()
