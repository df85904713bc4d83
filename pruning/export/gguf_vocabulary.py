"""The tokenizer of a GGUF file, from a Hugging Face `tokenizer.json`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

from pruning.errors import ExportRefused

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    ("bytes",): "gpt-2",
    (_GPT2, "bytes"): "gpt-2",
    ("digits", "bytes"): "smollm",
    (_WORDS % r"\p{N}{1,3}", "bytes"): "llama-bpe",
    (_WORDS % r"\p{N}", "bytes"): "qwen2",
}
"""Steps of a byte-level pre-tokenizer, and llama.cpp's name for the same; the parity check compares
their tokens."""


def add_vocabulary(writer: gguf.GGUFWriter, directory: Path, *, vocab_size: int) -> None:
    """Write tokens, merges, special tokens and chat template.

    Raises:
        ExportRefused: llama.cpp has no tokenizer that does the same.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ExportRefused(f"GGUF: {directory} has no tokenizer.json")
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise ExportRefused(
            f"GGUF: tokenizers of type {model.get('type')!r} are not written, BPE is"
        )
    pieces = _pieces(tokenizer, vocab_size)
    if model.get("byte_fallback"):
        _add_sentencepiece(writer, tokenizer)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_types([kind for _, kind in pieces])
    if model.get("byte_fallback"):
        writer.add_token_scores(_scores(model, [text for text, _ in pieces]))
    special = gguf.SpecialVocab(directory, load_merges=True, n_vocab=vocab_size)
    special.add_special_token.setdefault("bos", False)
    special.chat_template = _chat_template(directory) or special.chat_template
    special.add_to_gguf(writer, quiet=True)


def _pieces(tokenizer: dict[str, Any], vocab_size: int) -> list[tuple[str, gguf.TokenType]]:
    """Text and kind of every id; ids that only pad the embeddings get a name of their own."""
    pieces = [(f"[PAD{i}]", gguf.TokenType.UNUSED) for i in range(vocab_size)]
    bytes_fall_back = tokenizer["model"].get("byte_fallback", False)
    for text, index in tokenizer["model"]["vocab"].items():
        is_byte = bytes_fall_back and len(text) == 6 and text.startswith("<0x")
        pieces[index] = (text, gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL)
    for token in tokenizer["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        pieces[token["id"]] = (token["content"], kind)
    return pieces


def _pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    steps = tuple(_steps(tokenizer.get("pre_tokenizer") or {}))
    name = _PRE_TOKENIZERS.get(steps)
    if name is None:
        raise ExportRefused(f"GGUF: llama.cpp has no known equal of the pre-tokenizer {steps}")
    if name == "smollm" and tokenizer["model"].get("ignore_merges"):
        raise ExportRefused("GGUF: llama.cpp's smollm tokenizer does not ignore merges")
    return name


def _steps(step: dict[str, Any]) -> Iterator[str]:
    kind = step.get("type")
    if kind == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _steps(inner)
    elif kind == "Split":
        yield step["pattern"].get("Regex", str(step["pattern"]))
    elif kind == "Digits":
        yield "digits" if step["individual_digits"] else "digit runs"
    elif kind == "ByteLevel":
        yield "bytes with a space in front" if step["add_prefix_space"] else "bytes"
    else:
        yield str(kind)


def _add_sentencepiece(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_add_space_prefix(_adds_space(tokenizer))


def _adds_space(tokenizer: dict[str, Any]) -> bool:
    """Whether text starts with an invisible space: Llama 2's normalizer, or Metaspace."""
    normalizer = tokenizer.get("normalizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), tokenizer.get("pre_tokenizer") or {}]
    return any(
        step.get("type") == "Prepend" or step.get("prepend_scheme") in ("first", "always")
        for step in steps
    )


def _scores(model: dict[str, Any], texts: list[str]) -> list[float]:
    """SentencePiece merges the best score first: the earlier a merge was learnt, the better."""
    rank: dict[str, int] = {}
    for position, merge in enumerate(model["merges"]):
        text = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        rank.setdefault(text, position)
    return [-float(rank[text]) if text in rank else -1e6 for text in texts]


def _chat_template(directory: Path) -> str | None:
    path = directory / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else None
