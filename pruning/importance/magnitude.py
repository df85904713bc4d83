"""Weight magnitude: the classic criterion that needs no text."""

import torch


def magnitude_importance(weight: torch.Tensor) -> torch.Tensor:
    """w^2 of each entry, fp32; summed over a group it is the group's squared L2 norm."""
    return weight.float().square()
