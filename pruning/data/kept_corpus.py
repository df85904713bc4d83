"""A corpus that is tokenised once: what lies on disk is used again while text and tokenizer last.

Kept by the content of every file, by the tokenizer, and by all that decides what is read of them. A
run that goes on on the same machine then starts without reading its text. Text that may change
unseen, such as a dataset of the hub, is read anew.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from pruning.data.cleaning import RunsOfWords
from pruning.data.corpus import Corpus, DomainTokens, Progress, build_corpus, say_nothing
from pruning.data.sources import expand_domains
from pruning.data.tokens import Tokens
from pruning.manifest import digest_file
from pruning.recipe_parts.data import Data, DataSource, InlineData, PathData

_INDEX = "corpus.json"
_FORMAT = 1
"""Of the index and the token files; another one is not read."""


def open_corpus(
    data: Data,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    *,
    max_train_tokens: int | None = None,
    evaluations: RunsOfWords | None = None,
    progress: Progress = say_nothing,
) -> Corpus:
    """The corpus as `build_corpus` makes it, or as it was made before and lies in `directory`.

    Raises:
        InvalidData: as `build_corpus`.
    """
    key = _key(data, tokenizer, max_train_tokens, evaluations)
    kept = _read(directory, key) if key is not None else None
    if kept is not None:
        return kept
    (directory / _INDEX).unlink(missing_ok=True)
    corpus = build_corpus(
        data,
        tokenizer,
        directory,
        max_train_tokens=max_train_tokens,
        evaluations=evaluations,
        progress=progress,
    )
    if key is not None:
        _write(directory, key, corpus)
    return corpus


def _key(
    data: Data,
    tokenizer: PreTrainedTokenizerFast,
    max_train_tokens: int | None,
    evaluations: RunsOfWords | None,
) -> str | None:
    """Of all that the corpus follows from; None where that cannot be told without reading it."""
    sources: list[DataSource] = [named.source for named in expand_domains(data.train)]
    if data.evaluation is not None:
        sources.append(data.evaluation)
    contents = [_content(source) for source in sources]
    if None in contents:
        return None
    decides = {
        "format": _FORMAT,
        "data": data.model_dump(mode="json", exclude={"mixture"}),
        "contents": contents,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "chat_template": tokenizer.chat_template,
        "end": tokenizer.eos_token_id,
        "max_train_tokens": max_train_tokens,
        "evaluations": None if evaluations is None else evaluations.digest(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _content(source: DataSource) -> str | None:
    if isinstance(source, InlineData):
        return "as the recipe has it"
    if isinstance(source, PathData) and Path(source.path).is_file():
        return digest_file(Path(source.path)).sha256
    return None


def _write(directory: Path, key: str, corpus: Corpus) -> None:
    """The index comes last and at once: what a kill interrupts is not believed."""
    index = {
        "key": key,
        "fingerprint": corpus.fingerprint,
        "domains": [
            {
                "name": domain.name,
                "weight": domain.weight,
                "train": _place(domain.train),
                "held_out": _place(domain.held_out),
            }
            for domain in corpus.domains
        ],
        "held_out": [_place(tokens) for tokens in corpus.held_out],
        "warnings": corpus.warnings,
        "removals": corpus.removals,
    }
    unfinished = directory / f".{_INDEX}"
    unfinished.write_text(json.dumps(index), encoding="utf-8")
    unfinished.replace(directory / _INDEX)


def _place(tokens: Tokens) -> dict[str, Any]:
    """Where tokens lie; no tokens lie nowhere."""
    place = tokens.filename if isinstance(tokens, np.memmap) else None
    file = None if place is None else Path(place).name
    return {"file": file, "dtype": tokens.dtype.str, "count": len(tokens)}


def _read(directory: Path, key: str) -> Corpus | None:
    """What lies there under this key, if it is all there."""
    try:
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        if index["key"] != key:
            return None
        return Corpus(
            domains=tuple(
                DomainTokens(
                    name=domain["name"],
                    weight=domain["weight"],
                    train=_tokens(directory, domain["train"]),
                    held_out=_tokens(directory, domain["held_out"]),
                )
                for domain in index["domains"]
            ),
            held_out=tuple(_tokens(directory, place) for place in index["held_out"]),
            fingerprint=index["fingerprint"],
            warnings=tuple(index["warnings"]),
            removals=tuple(index["removals"]),
        )
    except (OSError, ValueError):
        return None  # Nothing was kept, or a token file is gone or shorter than it was.


def _tokens(directory: Path, place: Mapping[str, Any]) -> Tokens:
    if place["file"] is None:
        return np.empty(0, dtype=place["dtype"])
    shape = (place["count"],)
    return np.memmap(directory / place["file"], dtype=place["dtype"], mode="r", shape=shape)
