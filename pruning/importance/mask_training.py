"""How masks and the multipliers that hold them to their target change from step to step."""

import math

import numpy as np
import torch

from pruning.importance.mask_targets import MaskTarget, Multipliers
from pruning.importance.masks import Masks

_STREAM = 0x3A5C
"""Keeps the noise of masks apart from all else that is drawn under the same seed."""
_LEARNING_RATE = 1.0
"""Of log-odds and multipliers: Sheared-LLaMA's."""
_BETAS = (0.9, 0.95)
_RAMP_SHARE = 0.2
"""Of the phase, over which the target grows from nothing."""
_WARMUP_SHARE = 0.1
_LEAST_RATE = 0.1


class MaskTraining:
    """Masks, what they are held to, and their optimizers; values are drawn for the first step."""

    def __init__(self, masks: Masks, target: MaskTarget, *, seed: tuple[int, int]) -> None:
        self.masks = masks
        self._target = target
        self._generator = np.random.default_rng([seed[0], _STREAM, seed[1]])
        self._optimizer = torch.optim.Adam(
            [mask.log_odds for mask in masks.all()], lr=_LEARNING_RATE, betas=_BETAS
        )
        self._multipliers = Multipliers(
            len(target.violations(masks, 0.0)), learning_rate=_LEARNING_RATE, betas=_BETAS
        )
        masks.draw(self._generator)

    def step(self, progress: float) -> None:
        """Update by the gradients of one step of the model, then draw for the next.

        `progress` is the share of the phase that is done.
        """
        rate = _rate(progress)
        violations = self._target.violations(self.masks, min(1.0, progress / _RAMP_SHARE))
        self.masks.backward(self._multipliers.penalty(violations))
        for group in self._optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._multipliers.climb(rate)
        self.masks.draw(self._generator)


def _rate(progress: float) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    if progress < _WARMUP_SHARE:
        return progress / _WARMUP_SHARE
    falling = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return _LEAST_RATE + (1 - _LEAST_RATE) * falling
