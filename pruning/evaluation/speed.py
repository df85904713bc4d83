"""Measured speed and memory of a model as it would be served."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

_PREFILL_TOKENS = 512
_DECODE_PROMPT_TOKENS = 64
_DECODE_TOKENS = 32
_REPEATS = 5


_State = TypeVar("_State")


@dataclass(frozen=True, kw_only=True)
class _Position:
    """A KV cache and the token that follows it."""

    cache: Cache
    next_ids: Tensor


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one user of the model would meet, at batch size 1; by name of the metric.

    Times are medians over the repeats, after one warm-up. `peak_memory_bytes` is there only on
    devices that count what they hold.
    """

    metrics: Mapping[str, float]
    num_repeats: int
    protocol: dict[str, str | int | float | bool | None]


def measure_speed(model: PreTrainedModel, *, dtype: torch.dtype) -> Speed:
    """Prefill of one prompt and greedy decoding with a KV cache, by a copy in `dtype`."""
    device = next(model.parameters()).device
    held = _start_counting(device)
    served = copy.deepcopy(model).to(dtype).eval()
    vocab_size = served.get_input_embeddings().weight.shape[0]
    # Any ids do: speed does not depend on which tokens they are.
    ids_BT = torch.arange(_PREFILL_TOKENS, device=device)[None] % vocab_size
    prompt_BT = ids_BT[:, :_DECODE_PROMPT_TOKENS]
    prefill = _median_seconds(lambda: None, lambda _: _forward(served, ids_BT, None), device)
    decode = _median_seconds(
        lambda: _forward(served, prompt_BT, None), lambda start: _decode(served, start), device
    )
    metrics = {
        "prefill_tokens_per_second": _PREFILL_TOKENS / prefill,
        "decode_tokens_per_second": _DECODE_TOKENS / decode,
        "first_token_seconds": prefill,
        "weight_bytes": float(_num_bytes(served.parameters())),
        "kv_cache_bytes_per_token": _cache_bytes(_forward(served, ids_BT, None).cache),
    }
    if held is not None:
        metrics["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(device) - held)
    return Speed(
        metrics=metrics,
        num_repeats=_REPEATS,
        protocol={
            "device": _device_name(device),
            "threads": torch.get_num_threads(),
            "dtype": str(dtype).removeprefix("torch."),
            "batch_size": 1,
            "prefill_tokens": _PREFILL_TOKENS,
            "decode_prompt_tokens": _DECODE_PROMPT_TOKENS,
            "decode_tokens": _DECODE_TOKENS,
            "repeats": _REPEATS,
            "statistic": "median",
        },
    )


def _start_counting(device: torch.device) -> int | None:
    """Bytes that the device holds before the model to measure comes, if it counts them."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _cache_bytes(cache: Cache) -> float:
    """Keys and values of all layers, per token of the prompt that filled them."""
    held = [
        tensor
        for layer in cache.layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if tensor is not None
    ]
    return _num_bytes(held) / _PREFILL_TOKENS


@torch.no_grad()
def _forward(model: PreTrainedModel, ids_BT: Tensor, cache: Cache | None) -> _Position:
    output = model(ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return _Position(cache=output.past_key_values, next_ids=output.logits.argmax(dim=-1))


def _decode(model: PreTrainedModel, position: _Position) -> None:
    for _ in range(_DECODE_TOKENS):
        position = _forward(model, position.next_ids, position.cache)


def _median_seconds(
    prepare: Callable[[], _State], timed: Callable[[_State], object], device: torch.device
) -> float:
    seconds = []
    for _ in range(_REPEATS + 1):
        state = prepare()
        _synchronize(device)
        started = time.perf_counter()
        timed(state)
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])  # The first is the warm-up.


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
