"""Tiny checkpoints to export: random, cut unevenly, with a tokenizer and a chat template."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace, Sequence
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import BpeTrainer
from transformers import (
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from pruning.models.geometry import unpruned_plan
from pruning.plan import PruningPlan
from pruning.surgery import apply_plan
from tests.pruning.tiny import CORPUS, make_tiny_model, make_tiny_tokenizer

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def cut(model: PreTrainedModel, *, evenly: bool = False) -> None:
    """Remove channels and KV groups, from each layer as many or from each another number."""
    base = unpruned_plan(model)
    layers = tuple(
        layer.model_copy(
            update={
                "intermediate": layer.intermediate[: 40 if evenly else 60 - 8 * i],
                "kv_groups": layer.kv_groups[1:] if evenly else layer.kv_groups[: 3 - min(i, 2)],
            }
        )
        for i, layer in enumerate(base.layers)
    )
    apply_plan(model, PruningPlan(layers=layers), previous=base)


def save_tiny_checkpoint(
    directory: Path, family: str = "llama", *, evenly: bool = False, tied: bool = True
) -> Path:
    """What `save_checkpoint` leaves, without manifest and training state."""
    model = make_tiny_model(family, tied=tied)
    cut(model, evenly=evenly)
    model.save_pretrained(directory)
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


SENTENCEPIECE_STYLES = ("llama", "mistral", "gemma")
"""A space put in front of the text; put there by the normalizer, of old; and none."""


def sentencepiece_tokenizer(style: str) -> PreTrainedTokenizerBase:
    """What SentencePiece's BPE becomes in transformers: pieces with ▁ for spaces, and bytes."""
    vocab, merges = _train_sentencepiece()
    if style == "llama":
        return LlamaTokenizer(vocab=vocab, merges=merges)
    if style == "gemma":
        names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
        return GemmaTokenizer(vocab=vocab, merges=merges, mask_token="<unk>", **names)
    tokenizer = Tokenizer(
        BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = Sequence([Prepend("▁"), Replace(" ", "▁")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _train_sentencepiece() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = Metaspace()
    own = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=400, special_tokens=own, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]
