"""Text that importance is measured on: random training windows, new for each increment.

B sequences, T tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pruning.data.corpus import DomainTokens
from pruning.data.tokens import token_ids
from pruning.errors import InvalidData
from pruning.recipe_parts.method import Calibration

_STREAM = 0xCA11B
"""Keeps the calibration draws apart from the sampler's under the same seed."""


def calibration_batches(
    domains: Sequence[DomainTokens],
    calibration: Calibration,
    *,
    seed: int,
    increment: int,
    part: int = 0,
) -> list[Tensor]:
    """`num_samples` windows in batches `ids_BT`, drawn by seed, increment and part of it alone.

    Of conversations every token counts, whoever says it.

    Raises:
        InvalidData: no domain holds one window.
    """
    length = calibration.sequence_length
    usable = [d for d in domains if len(d.train) >= length and d.weight > 0]
    if not usable:
        raise InvalidData(
            f"no domain holds {length} training tokens, the length of one calibration window",
            param="importance.calibration.sequence_length",
        )
    generator = np.random.default_rng([seed, _STREAM + part, increment])
    weights = np.array([domain.weight for domain in usable])
    chosen = generator.choice(len(usable), calibration.num_samples, p=weights / weights.sum())
    windows = []
    for index in chosen:
        tokens = usable[index].train
        start = int(generator.integers(len(tokens) - length + 1))
        windows.append(token_ids(tokens[start : start + length]))
    return list(torch.split(torch.from_numpy(np.stack(windows)), calibration.batch_size))
