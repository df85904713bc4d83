"""Random models that build in milliseconds, one per supported family, and a tokenizer for them."""

import importlib
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 320
END_OF_TEXT = "<|endoftext|>"
CORPUS = (
    "The gardener prunes the espalier each winter so that it bears more fruit in summer.",
    "def prune(tree, shape):\n    return [branch for branch in tree if branch in shape]",
    "A smaller tree, pruned and trained season after season, keeps what the large one knew.",
)

# Family -> (config class, model class, what differs from the common shape). OLMo 2 averages its
# QK-norm over the heads that stay, so mask and cut agree only up to the epsilon: make it small.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "ministral": ("MinistralConfig", "MinistralForCausalLM", {"head_dim": 8}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {}),
    "granite": (
        "GraniteConfig",
        "GraniteForCausalLM",
        {"residual_multiplier": 0.5, "attention_multiplier": 0.35},
    ),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {"rms_norm_eps": 1e-9}),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", {"rms_norm_eps": 1e-9}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {"rotary_pct": 0.5}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 8,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "mlp_only_layers": [1],
        },
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 8, "initializer_range": 0.05}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 8}),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 8}),
}


UNGROUPED = ("gpt_neox",)
"""Families in which each query head has a KV head of its own."""
DENSE = tuple(family for family in FAMILIES if family != "qwen3_moe")
"""Families without experts."""
GROUPED = tuple(family for family in DENSE if family not in UNGROUPED)


def make_tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    num_hidden_layers: int = 3,
    hidden_size: int = 48,
    intermediate_size: int = 64,
    num_attention_heads: int = 6,
    num_key_value_heads: int = 3,
    tied: bool = True,
    **overrides: Any,
) -> PreTrainedModel:
    """A random fp32 model in eval mode; weights are large enough that each group matters."""
    config_name, model_name, extra = FAMILIES[family]
    grouped = {} if family in UNGROUPED else {"num_key_value_heads": num_key_value_heads}
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, config_name)(
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            **grouped,
            "max_position_embeddings": 512,
            "initializer_range": 0.15,
            "tie_word_embeddings": tied,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            **extra,
            **overrides,
        }
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = getattr(transformers, model_name)(config)
    _randomise_biases_and_norms(model)
    return model.eval()


def _randomise_biases_and_norms(model: PreTrainedModel) -> None:
    """Transformers starts biases at 0 and norms at 1, which would hide a wrong slice."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                centre = 0.0 if name.endswith("bias") else 1.0
                parameter.add_(torch.randn_like(parameter) * 0.2 + centre - parameter)


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on three sentences: any text encodes, nothing is downloaded."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )


def random_ids(*, num_sequences: int = 2, length: int = 16, seed: int = 1) -> torch.Tensor:
    """Token ids [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB_SIZE, (num_sequences, length), generator=generator)
