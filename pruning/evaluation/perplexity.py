"""Perplexity on held-out text. W windows, T tokens each."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from pruning.data.tokens import Tokens
from pruning.models.loss import Precision, token_losses

_BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """exp of the mean loss per predicted token; the standard error is taken over windows.

    `stream_losses` holds the mean loss of each stream in nats, None where it has no window;
    `window_losses` that of each window.
    """

    value: float
    stderr: float | None
    num_windows: int
    stream_losses: tuple[float | None, ...]
    window_losses: tuple[float, ...]
    protocol: dict[str, str | int | float | bool | None]


def evaluate_perplexity(
    model: PreTrainedModel,
    held_out: Sequence[Tokens],
    *,
    context_length: int,
    precision: Precision,
    data_fingerprint: str,
) -> Perplexity:
    """Perplexity over windows of `context_length` tokens that do not overlap.

    A window's first token is not predicted, nor is what is only read; a stream's last, shorter
    window counts only where it has no other.
    """
    streams = [list(_windows(tokens, context_length)) for tokens in held_out]
    windows = [window for stream in streams for window in stream]
    means_W, counts_W = _losses(model, windows, precision)
    mean = float(np.average(means_W, weights=counts_W))
    value = math.exp(min(mean, 700.0))  # exp(710) overflows a double.
    return Perplexity(
        value=value,
        stderr=_stderr(means_W, value),
        num_windows=len(windows),
        stream_losses=tuple(_stream_losses([len(s) for s in streams], means_W, counts_W)),
        window_losses=tuple(means_W.tolist()),
        protocol={
            "context_length": context_length,
            "stride": context_length,
            "num_windows": len(windows),
            "num_tokens": int(counts_W.sum()),
            "precision": precision,
            "data": data_fingerprint,
        },
    )


def _windows(tokens: Tokens, length: int) -> Iterator[NDArray[np.int64]]:
    whole = len(tokens) // length
    last = 0 if whole else len(tokens)
    ends = [*range(length, whole * length + 1, length), *([last] if last > 1 else [])]
    for end in ends:
        window = tokens[max(0, end - length) : end].astype(np.int64)
        if _num_predictions(window):
            yield window


def _num_predictions(window: NDArray[np.int64]) -> int:
    return int((window[1:] >= 0).sum())


def _losses(
    model: PreTrainedModel, windows: list[NDArray[np.int64]], precision: Precision
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean loss and number of predictions of each window."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    totals: list[float] = []
    for ids_BT in _batches(windows):
        losses_BT = token_losses(model, ids_BT.to(device), precision)
        totals += losses_BT.double().sum(dim=1).tolist()
    model.train(was_training)
    counts_W = np.array([_num_predictions(window) for window in windows])
    return np.array(totals) / counts_W, counts_W


def _stream_losses(
    num_windows: Sequence[int], means_W: NDArray[np.float64], counts_W: NDArray[np.int64]
) -> Iterator[float | None]:
    start = 0
    for num in num_windows:
        part = slice(start, start + num)
        yield float(np.average(means_W[part], weights=counts_W[part])) if num else None
        start += num


def _batches(windows: list[NDArray[np.int64]]) -> Iterator[Tensor]:
    batch: list[NDArray[np.int64]] = []
    for window in windows:
        if batch and (len(window) != len(batch[0]) or len(window) * len(batch) >= _BATCH_TOKENS):
            yield torch.from_numpy(np.stack(batch))
            batch = []
        batch.append(window)
    if batch:
        yield torch.from_numpy(np.stack(batch))


def _stderr(means_W: NDArray[np.float64], value: float) -> float | None:
    """Delta method: the derivative of exp is the value itself."""
    if len(means_W) < 2:
        return None
    return float(value * means_W.std(ddof=1) / math.sqrt(len(means_W)))
