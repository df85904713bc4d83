"""How far a block turns the residual stream: Adapt-Pruner's metric, ShortGPT's block influence.

Shapes: B batch, T sequence, D hidden.
"""

import torch


def block_importance(in_BTD: torch.Tensor, out_BTD: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of 1 - cos(in, out), fp32: high when the block changes the direction."""
    cosine_BT = torch.nn.functional.cosine_similarity(in_BTD.float(), out_BTD.float(), dim=-1)
    return (1 - cosine_BT).mean()
