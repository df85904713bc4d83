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
from pruning.recipe_parts.calibration import CalibrationSize

_STREAM = 0xCA11B
"""Keeps the calibration draws apart from the sampler's under the same seed."""
_ORDER = 1


def calibration_batches(
    domains: Sequence[DomainTokens],
    size: CalibrationSize,
    *,
    seed: int,
    increment: int,
    part: int = 0,
) -> list[Tensor]:
    """`num_samples` windows in batches `ids_BT`, drawn by seed, increment and part of it alone.

    Each domain gives its share of them, to within one or two, in no order. Of conversations every
    token counts, whoever says it.

    Raises:
        InvalidData: no domain holds one window.
    """
    length = size.sequence_length
    usable = [d for d in domains if len(d.train) >= length and d.weight > 0]
    if not usable:
        raise InvalidData(
            f"no domain holds {length} training tokens, the length of one calibration window",
            param="importance.calibration.sequence_length",
        )
    draw = [seed, _STREAM + part, increment]
    generator = np.random.default_rng(draw)
    bounds = np.cumsum([domain.weight for domain in usable])
    # One place in each of as many equal strata: left to chance, small draws miss whole domains.
    places = np.arange(size.num_samples) + generator.random(size.num_samples)
    chosen = np.searchsorted(bounds / bounds[-1], places / size.num_samples, side="right").clip(
        max=len(usable) - 1
    )
    np.random.default_rng([*draw, _ORDER]).shuffle(chosen)
    windows = []
    for index in chosen:
        tokens = usable[index].train
        start = int(generator.integers(len(tokens) - length + 1))
        windows.append(token_ids(tokens[start : start + length]))
    return list(torch.split(torch.from_numpy(np.stack(windows)), size.batch_size))
