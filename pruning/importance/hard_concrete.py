"""Hard-concrete masks (Louizos et al., arXiv 1712.01312), with Sheared-LLaMA's constants.

A mask value lies in [0, 1] and is exactly 0 or 1 with positive probability. `log_odds` decide how
likely it is to be open, and carry the gradient.
"""

import math

import torch
from torch import Tensor

_LOW, _HIGH = -0.1, 1.1
_TEMPERATURE = 2 / 3
_SHRINK = 0.8
_EDGE = 1e-6
MAX_LOG_ODDS = math.log(100)
"""Log-odds are kept within it: beyond, nothing would ever come back."""


def open_probability(log_odds: Tensor) -> Tensor:
    """The probability that a mask is above 0."""
    return torch.sigmoid(log_odds - _TEMPERATURE * math.log(-_LOW / _HIGH))


def sampled(log_odds: Tensor, uniform: Tensor) -> Tensor:
    """Mask values by uniform noise in [0, 1), differentiable in the log-odds."""
    noise = uniform.clamp(_EDGE, 1 - _EDGE)
    concrete = torch.sigmoid((noise.logit() + log_odds) / _TEMPERATURE)
    return (concrete * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def settled(log_odds: Tensor) -> Tensor:
    """The value that stands for a mask once nothing is drawn any more: near its mean."""
    return torch.sigmoid(_SHRINK * log_odds / _TEMPERATURE)
