import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pruning.evaluation.perplexity import Perplexity, evaluate_perplexity
from tests.pruning.tiny import VOCAB_SIZE

TOKENS = np.random.default_rng(0).integers(1, VOCAB_SIZE, 330).astype(np.uint16)


def evaluate(model: PreTrainedModel, *streams: np.ndarray) -> Perplexity:
    return evaluate_perplexity(
        model, streams, context_length=32, precision="float32", data_fingerprint="f"
    )


def naive_losses(model: PreTrainedModel, windows: list[np.ndarray]) -> list[float]:
    losses = []
    for window in windows:
        ids_BT = torch.from_numpy(window.astype(np.int64))[None]
        with torch.no_grad():
            losses.append(float(model(ids_BT, labels=ids_BT).loss))
    return losses


def test_perplexity_equals_the_naive_computation(tiny_llama: PreTrainedModel) -> None:
    losses = naive_losses(tiny_llama, [TOKENS[i * 32 : (i + 1) * 32] for i in range(10)])
    result = evaluate(tiny_llama, TOKENS)
    assert result.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    expected = result.value * np.std(losses, ddof=1) / math.sqrt(10)
    assert result.stderr == pytest.approx(expected, rel=1e-3)


def test_several_streams_count_by_their_windows(tiny_llama: PreTrainedModel) -> None:
    together = evaluate(tiny_llama, TOKENS[:160], TOKENS[160:])
    assert together.value == pytest.approx(evaluate(tiny_llama, TOKENS).value, rel=1e-6)


def test_a_text_shorter_than_a_window_still_counts(tiny_llama: PreTrainedModel) -> None:
    result = evaluate(tiny_llama, TOKENS[:20])
    (loss,) = naive_losses(tiny_llama, [TOKENS[:20]])
    assert result.value == pytest.approx(math.exp(loss), rel=1e-5)
    assert result.stderr is None


def test_the_protocol_says_how_it_was_measured(tiny_llama: PreTrainedModel) -> None:
    assert evaluate(tiny_llama, TOKENS).protocol == {
        "context_length": 32,
        "stride": 32,
        "num_windows": 10,
        "num_tokens": 310,
        "precision": "float32",
        "data": "f",
    }


def test_measuring_leaves_a_training_model_in_training_mode(tiny_llama: PreTrainedModel) -> None:
    tiny_llama.train()
    evaluate(tiny_llama, TOKENS)
    assert tiny_llama.training
