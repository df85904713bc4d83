import pytest
import torch
from transformers import PreTrainedModel

from pruning.evaluation.speed import as_served, measure_speeds


def test_speed_is_measured_on_a_copy_and_says_how(tiny_llama: PreTrainedModel) -> None:
    (speed,) = measure_speeds([as_served(tiny_llama, dtype=torch.bfloat16)])
    found = speed.metrics
    assert found["prefill_tokens_per_second"] > found["decode_tokens_per_second"] > 0
    assert found["first_token_seconds"] == pytest.approx(512 / found["prefill_tokens_per_second"])
    timed = {"prefill_tokens_per_second", "decode_tokens_per_second", "first_token_seconds"}
    assert speed.stderrs.keys() == timed
    assert all(0 < speed.stderrs[name] < 10 * found[name] for name in timed)
    assert speed.protocol["dtype"] == "bfloat16"
    assert speed.protocol["threads"] == torch.get_num_threads()
    assert next(tiny_llama.parameters()).dtype == torch.float32


def test_memory_is_that_of_the_weights_and_the_cache(tiny_llama: PreTrainedModel) -> None:
    found = measure_speeds([as_served(tiny_llama, dtype=torch.bfloat16)])[0].metrics
    assert found["weight_bytes"] == 2 * sum(p.numel() for p in tiny_llama.parameters())
    # Keys and values of 3 layers with 3 KV heads of 8 dimensions, 2 bytes each.
    assert found["kv_cache_bytes_per_token"] == 2 * 3 * 3 * 8 * 2
    # Beside the weights, at least the cache and the widest activations of 512 tokens.
    least = 512 * (found["kv_cache_bytes_per_token"] + 2 * 2 * 64)
    assert least < found["peak_memory_bytes"] - found["weight_bytes"] < 20 * least


def test_models_take_turns_so_that_the_same_moments_count_for_both(
    tiny_llama: PreTrainedModel,
) -> None:
    models = [as_served(tiny_llama, dtype=torch.float32) for _ in range(2)]
    turns: list[int] = []
    for number, model in enumerate(models):
        model.register_forward_pre_hook(lambda *_, number=number: turns.append(number))
    fast, slow = measure_speeds(models)
    assert fast.metrics.keys() == slow.metrics.keys()
    # Six prefills of each come first: the one that warms up, and those that count.
    assert turns[:12] == [0, 1] * 6
