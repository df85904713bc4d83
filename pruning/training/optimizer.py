"""AdamW over fp32 master weights."""

import torch
from torch import nn

from pruning.recipe_parts.recovery import Recovery
from pruning.training.averaging import AVERAGE


def build_optimizer(model: nn.Module, recovery: Recovery) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, norms and biases do not. The loop sets the learning rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recovery.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recovery.learning_rate.peak,
        betas=recovery.betas,
        fused=True,
    )


def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let AdamW begin anew; averages of the weights stay."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if key != AVERAGE:
                value.zero_()
