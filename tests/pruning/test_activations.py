"""Streaming moments, against NumPy."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.importance.activations import ChannelMoments

CHANNELS = 5


def draw(seed: int, offset: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1e-3, 1.0, 30.0, 0.0, 1.0])
    return offset + scale * torch.randn(6, 7, CHANNELS, generator=generator)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.floats(-1e3, 1e3), st.integers(1, 6))
def test_moments_equal_numpy_however_the_text_is_batched(
    seed: int, offset: float, batch: int
) -> None:
    text, moments = draw(seed, offset), ChannelMoments()
    for part in text.split(batch):
        moments.add(part)
    rows = text.double().numpy().reshape(-1, CHANNELS)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(moments.variance(), rows.var(axis=0, ddof=1), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(moments.norm(), np.linalg.norm(rows, axis=0), rtol=1e-6)
    assert moments.num_tokens == len(rows)


def test_a_channel_that_never_changes_has_no_variance() -> None:
    moments = ChannelMoments()
    for _ in range(3):
        moments.add(torch.full((2, 5, 1), 0.1))
    assert moments.variance().item() < 1e-30
    assert moments.mean.item() == torch.tensor(0.1).double().item()
