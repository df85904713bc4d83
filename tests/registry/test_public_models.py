"""The sizes of public models, counted again from the shapes that their makers publish."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pruning.models.architecture import read_architecture
from registry.public_models import PUBLIC_MODELS, models_near

SIZES = {model.name: model.num_parameters for model in PUBLIC_MODELS}


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
        **more,
    }


def pythia(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    shape = llama(hidden, 4 * hidden, layers, heads, heads, 50_304)
    return {**shape, "model_type": "gpt_neox", "tie_word_embeddings": False}


SMOLLM_135M = llama(576, 1536, 30, 9, 3, 49_152)
SMOLLM_360M = llama(960, 2560, 32, 15, 5, 49_152)
SMOLLM_1700M = llama(2048, 8192, 24, 32, 32, 49_152)
SHAPES = {
    "EleutherAI/pythia-70m": pythia(512, 6, 8),
    "EleutherAI/pythia-160m": pythia(768, 12, 12),
    "EleutherAI/pythia-410m": pythia(1024, 24, 16),
    "EleutherAI/pythia-1b": pythia(2048, 16, 8),
    "facebook/MobileLLM-125M": llama(576, 1536, 30, 9, 3, 32_000),
    "facebook/MobileLLM-350M": llama(960, 2560, 32, 15, 5, 32_000),
    "facebook/MobileLLM-600M": llama(1152, 3072, 40, 18, 6, 32_000),
    "facebook/MobileLLM-1B": llama(1280, 3584, 54, 20, 5, 32_000),
    "HuggingFaceTB/SmolLM-135M": SMOLLM_135M,
    "HuggingFaceTB/SmolLM2-135M": SMOLLM_135M,
    "HuggingFaceTB/SmolLM-360M": SMOLLM_360M,
    "HuggingFaceTB/SmolLM2-360M": SMOLLM_360M,
    "HuggingFaceTB/SmolLM-1.7B": SMOLLM_1700M,
    "HuggingFaceTB/SmolLM2-1.7B": SMOLLM_1700M,
    "Qwen/Qwen2.5-0.5B": llama(896, 4864, 24, 14, 2, 151_936, model_type="qwen2"),
    "Qwen/Qwen2.5-1.5B": llama(1536, 8960, 28, 12, 2, 151_936, model_type="qwen2"),
    "Qwen/Qwen3-0.6B-Base": llama(1024, 3072, 28, 16, 8, 151_936, model_type="qwen3", head_dim=128),
    "meta-llama/Llama-3.2-1B": llama(2048, 8192, 16, 32, 8, 128_256),
    "princeton-nlp/Sheared-LLaMA-1.3B": llama(
        2048, 5504, 24, 16, 16, 32_000, tie_word_embeddings=False
    ),
}
CARDS = {
    "EleutherAI/pythia-70m": 18_915_328,
    "EleutherAI/pythia-160m": 85_056_000,
    "EleutherAI/pythia-410m": 302_311_424,
    "EleutherAI/pythia-1b": 805_736_448,
}
"""What these model cards print: parameters without the two matrices of the vocabulary."""


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"openai-community/gpt2"}))
def test_a_public_model_has_the_parameters_that_its_shape_gives(name: str) -> None:
    assert read_architecture(SHAPES[name]).num_parameters == SIZES[name]


def test_gpt2_has_the_parameters_of_the_library_s_default_configuration() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    assert sum(p.numel() for p in model.parameters()) == SIZES["openai-community/gpt2"]


@pytest.mark.parametrize("name", CARDS)
def test_pythia_s_cards_print_the_same_but_for_the_vocabulary(name: str) -> None:
    shape = SHAPES[name]
    assert SIZES[name] - 2 * shape["vocab_size"] * shape["hidden_size"] == CARDS[name]


def test_models_stand_in_order_of_size() -> None:
    sizes = [model.num_parameters for model in PUBLIC_MODELS]
    assert sizes == sorted(sizes)
    assert len(SIZES) == len(PUBLIC_MODELS)


def test_near_is_half_to_twice_the_size_and_what_is_named() -> None:
    near = models_near(200_000_000, also=["HuggingFaceTB/SmolLM2-1.7B"])
    sizes = [model.num_parameters for model in near]
    assert min(sizes) >= 100_000_000
    assert max(sizes[:-1]) <= 400_000_000
    assert near[-1].name == "HuggingFaceTB/SmolLM2-1.7B"
