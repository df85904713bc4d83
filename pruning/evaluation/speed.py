"""Measured speed and memory of a model as it would be served."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import Cache, PreTrainedModel

_PREFILL_TOKENS = 512
_DECODE_PROMPT_TOKENS = 64
_DECODE_TOKENS = 32
_REPEATS = 5
_MEDIAN_OVER_MEAN = math.sqrt(math.pi / 2)
"""By how much the median of normal draws scatters more than their mean."""

_State = TypeVar("_State")


@dataclass(frozen=True, kw_only=True)
class _Position:
    """A KV cache and the token that follows it."""

    cache: Cache
    next_ids: Tensor


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one user of the model would meet, at batch size 1; by name of the metric.

    Times are medians over the repeats, after one warm-up; `stderrs` has their standard errors.
    `peak_memory_bytes` is that of the weights and of one prefill.
    """

    metrics: Mapping[str, float]
    stderrs: Mapping[str, float]
    num_repeats: int
    protocol: dict[str, str | int | float | bool | None]


def as_served(model: PreTrainedModel, *, dtype: torch.dtype) -> PreTrainedModel:
    """A copy to measure, the model itself goes on training."""
    served: PreTrainedModel = copy.deepcopy(model).to(dtype).eval()
    return served


def measure_speeds(models: Sequence[PreTrainedModel]) -> list[Speed]:
    """Prefill of one prompt and greedy decoding with a KV cache, by each of some models.

    They take turns, so that whatever else the machine does slows all of them down alike.
    """
    device = next(models[0].parameters()).device
    ids_BT = [_any_ids(model, device) for model in models]
    prefills = _seconds(
        [lambda: None for _ in models],
        [partial(_prefill, model, ids) for model, ids in zip(models, ids_BT, strict=True)],
        device,
    )
    prompts = [ids[:, :_DECODE_PROMPT_TOKENS] for ids in ids_BT]
    decodes = _seconds(
        [partial(_forward, model, ids, None) for model, ids in zip(models, prompts, strict=True)],
        [partial(_decode, model) for model in models],
        device,
    )
    return [
        _speed(model, ids, prefill, decode, device)
        for model, ids, prefill, decode in zip(models, ids_BT, prefills, decodes, strict=True)
    ]


def _any_ids(model: PreTrainedModel, device: torch.device) -> Tensor:
    """A prompt; speed does not depend on which tokens it has."""
    vocab_size: int = model.get_input_embeddings().weight.shape[0]
    return torch.arange(_PREFILL_TOKENS, device=device)[None] % vocab_size


def _speed(
    model: PreTrainedModel,
    ids_BT: Tensor,
    prefill: "_Timed",
    decode: "_Timed",
    device: torch.device,
) -> Speed:
    weight_bytes = _num_bytes(model.parameters())
    position, peak = _counted(partial(_forward, model, ids_BT, None), device)
    metrics = {
        "prefill_tokens_per_second": _PREFILL_TOKENS / prefill.seconds,
        "decode_tokens_per_second": _DECODE_TOKENS / decode.seconds,
        "first_token_seconds": prefill.seconds,
        "weight_bytes": float(weight_bytes),
        "kv_cache_bytes_per_token": _cache_bytes(position.cache),
        "peak_memory_bytes": float(weight_bytes + peak),
    }
    relative = {
        "prefill_tokens_per_second": prefill.relative_stderr,
        "decode_tokens_per_second": decode.relative_stderr,
        "first_token_seconds": prefill.relative_stderr,
    }
    return Speed(
        metrics=metrics,
        stderrs={name: metrics[name] * error for name, error in relative.items()},
        num_repeats=_REPEATS,
        protocol={
            "device": _device_name(device),
            "threads": torch.get_num_threads(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "batch_size": 1,
            "prefill_tokens": _PREFILL_TOKENS,
            "decode_prompt_tokens": _DECODE_PROMPT_TOKENS,
            "decode_tokens": _DECODE_TOKENS,
            "repeats": _REPEATS,
            "statistic": "median",
        },
    )


def _counted(run: Callable[[], _State], device: torch.device) -> tuple[_State, int]:
    """What came of it, and the most bytes that it held at a time beside what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        found = run()
        return found, torch.cuda.max_memory_allocated(device) - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        found = run()
    results = profiler.profiler.kineto_results if profiler.profiler else None
    events = results.events() if results else []
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return found, max(accumulate(change for _, change in sorted(changes)), default=0)


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


def _prefill(model: PreTrainedModel, ids_BT: Tensor, _start: None) -> None:
    _forward(model, ids_BT, None)


def _decode(model: PreTrainedModel, position: _Position) -> None:
    for _ in range(_DECODE_TOKENS):
        position = _forward(model, position.next_ids, position.cache)


@dataclass(frozen=True)
class _Timed:
    """A median over the repeats, and its standard error as a share of it."""

    seconds: float
    relative_stderr: float


def _seconds(
    prepare: Sequence[Callable[[], _State]],
    timed: Sequence[Callable[[_State], object]],
    device: torch.device,
) -> list[_Timed]:
    """Of each model, all of which take a turn in every repeat."""
    seconds: list[list[float]] = [[] for _ in timed]
    for _ in range(_REPEATS + 1):
        for of_model, prepare_one, run_one in zip(seconds, prepare, timed, strict=True):
            state = prepare_one()
            _synchronize(device)
            started = time.perf_counter()
            run_one(state)
            _synchronize(device)
            of_model.append(time.perf_counter() - started)
    return [_timed(of_model[1:]) for of_model in seconds]  # The first warms up.


def _timed(seconds: Sequence[float]) -> _Timed:
    median = statistics.median(seconds)
    stderr = _MEDIAN_OVER_MEAN * statistics.stdev(seconds) / math.sqrt(len(seconds))
    return _Timed(median, stderr / median)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
