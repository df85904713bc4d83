"""One learning-rate schedule over all increments of a run. Pure."""

import math
from dataclasses import dataclass

from pruning.recipe_parts.recovery import LearningRate


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate by optimizer step, counted from 0 at the start of the run."""

    learning_rate: LearningRate
    total_steps: int
    last_cut_step: int
    """The decay of `wsd` begins here at the earliest: a model about to be cut is not settled."""

    def at(self, step: int) -> float:
        """The learning rate of the optimizer step that follows `step` finished ones."""
        return self.learning_rate.peak * self._factor(step)

    def _factor(self, step: int) -> float:
        warmup_steps = round(self.learning_rate.warmup_fraction * self.total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return self._after_warmup(step, warmup_steps)

    def _after_warmup(self, step: int, warmup_steps: int) -> float:
        if self.learning_rate.kind == "constant":
            return 1.0
        start = warmup_steps
        if self.learning_rate.kind == "wsd":
            decay_steps = round(self.learning_rate.decay_fraction * self.total_steps)
            start = max(self.total_steps - decay_steps, self.last_cut_step, warmup_steps)
        if step < start:
            return 1.0
        # The last step of the run is the one at `total_steps - 1`, and reaches the floor.
        progress = min(1.0, (step - start + 1) / max(1, self.total_steps - start))
        return self._decayed(progress)

    def _decayed(self, progress: float) -> float:
        floor = self.learning_rate.min_ratio
        if self.learning_rate.kind == "cosine":
            return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
        return 1 - (1 - floor) * progress
