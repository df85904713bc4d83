"""A model's configuration from the header of its GGUF file, without reading weights or vocabulary.

The format is walked by hand: gguf-py turns every token of the vocabulary into an object, which
takes seconds where skipping them takes milliseconds.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pruning.errors import InvalidModel

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_ENTRIES = 1 << 22
_STRING, _ARRAY = 8, 9
_SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_LENGTH = struct.Struct("<Q")
_MODEL_TYPES = {"gemma3": "gemma3_text"}
"""Where GGUF's name of an architecture is not the one of Hugging Face."""
_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
}
_KEPT_ITEMS = 4096
"""Longer arrays are of the vocabulary: only their length is kept."""


def config_of_gguf(path: Path) -> Mapping[str, Any]:
    """What config.json would say of the sizes of the model in a GGUF file.

    Raises:
        InvalidModel: it is no GGUF file, or its header is damaged.
    """
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _read(path: Path, _modified_ns: int, num_bytes: int) -> Mapping[str, Any]:
    if num_bytes < len(_MAGIC):
        raise InvalidModel(f"{path.name} is no GGUF file", param="model.gguf_file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            metadata, tensors = _Header(content).read()
            return _as_config(metadata, tensors)
        except (struct.error, ValueError, KeyError, IndexError, OverflowError) as error:
            message = f"{path.name}: the GGUF header is damaged"
            raise InvalidModel(message, param="model.gguf_file") from error


class _Header:
    """A place in the header; every read is bounded by the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0

    def read(self) -> tuple[dict[str, Any], frozenset[str]]:
        """Every metadata value, and the names of the tensors."""
        if self._take(len(_MAGIC)) != _MAGIC or self._scalar("I") not in _VERSIONS:
            raise ValueError("no GGUF file of a known version")
        num_tensors, num_values = self._count(), self._count()
        metadata = {self._text(): self._value(self._scalar("I")) for _ in range(num_values)}
        return metadata, frozenset(self._tensor() for _ in range(num_tensors))

    def _tensor(self) -> str:
        name = self._text()
        self._take(8 * self._scalar("I") + 12)
        return name

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array()
        return self._scalar(_SCALARS[kind])

    def _array(self) -> Any:
        kind, length = self._scalar("I"), self._count()
        if kind == _STRING:
            self._skip_texts(length)
            return range(length)
        if length <= _KEPT_ITEMS:
            return [self._value(kind) for _ in range(length)]
        self._skip(length * struct.calcsize(_SCALARS[kind]))
        return range(length)

    def _skip_texts(self, count: int) -> None:
        at, content, length_at = self._at, self._content, _LENGTH.unpack_from
        for _ in range(count):
            at += _LENGTH.size + length_at(content, at)[0]
        self._skip(at - self._at)

    def _count(self) -> int:
        count: int = self._scalar("Q")
        if count > _MAX_ENTRIES:
            raise ValueError(f"{count} entries")
        return count

    def _text(self) -> str:
        return self._take(self._scalar("Q")).decode("utf-8", "replace")

    def _scalar(self, form: str) -> Any:
        return struct.unpack("<" + form, self._take(struct.calcsize("<" + form)))[0]

    def _take(self, num_bytes: int) -> bytes:
        start = self._at
        self._skip(num_bytes)
        return self._content[start : self._at]

    def _skip(self, num_bytes: int) -> None:
        self._at += num_bytes
        if self._at > len(self._content):
            raise ValueError("the header ends too early")


def _as_config(metadata: Mapping[str, Any], tensors: frozenset[str]) -> dict[str, Any]:
    architecture = str(metadata["general.architecture"])
    found = {
        name: metadata[f"{architecture}.{key}"]
        for key, name in _FIELDS.items()
        if f"{architecture}.{key}" in metadata
    }
    per_layer = {name: value for name, value in found.items() if isinstance(value, list)}
    config: dict[str, Any] = {
        "model_type": _MODEL_TYPES.get(architecture, architecture),
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", ())),
        **{name: max(value) if name in per_layer else value for name, value in found.items()},
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }
    if per_layer:
        config["per_layer_config"] = {
            str(index): {name: values[index] for name, values in per_layer.items()}
            for index in range(config["num_hidden_layers"])
        }
    return config
