from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny matrices run slower on more threads."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    """3 layers, 6 query heads over 3 KV heads, tied embeddings, no biases, fp32."""
    return make_tiny_model("llama", attention_bias=False, mlp_bias=False)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Encodes any text with the vocabulary of the tiny models."""
    return make_tiny_tokenizer()


@pytest.fixture
def tiny_model_dir(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A Hugging Face directory with the tiny Llama and its tokenizer."""
    directory = tmp_path / "tiny-llama"
    tiny_llama.save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory
