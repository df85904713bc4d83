import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pruning.data.cleaning import RunsOfWords
from pruning.data.corpus import Corpus
from pruning.data.kept_corpus import open_corpus
from pruning.recipe_parts.data import Data
from tests.pruning.recipes import write_corpus
from tests.pruning.tiny import make_tiny_tokenizer

Open = Callable[..., tuple[Corpus, int]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    for seed, name in enumerate(("garden", "orchard")):
        write_corpus(tmp_path / "text" / f"{name}.jsonl", seed=seed)
    return tmp_path / "text"


@pytest.fixture
def opened(text: Path, tmp_path: Path) -> Open:
    """Opens the corpus, and says how many documents were tokenised for it."""

    def open_it(tokenizer: PreTrainedTokenizerFast | None = None, **changes: Any) -> Any:
        read = [0]
        options = {"max_train_tokens": 2000, **changes}
        given = {"train": str(text), "held_out_fraction": 0.2, **options.pop("data", {})}
        corpus = open_corpus(
            Data.model_validate(given),
            tokenizer or make_tiny_tokenizer(),
            tmp_path / "corpus",
            progress=lambda num_documents, _: read.append(num_documents),
            **options,
        )
        return corpus, read[-1]

    return open_it


def test_a_corpus_is_tokenised_once(opened: Open) -> None:
    first, read = opened()
    assert read > 0
    second, read_again = opened()
    assert read_again == 0
    assert (second.fingerprint, second.warnings) == (first.fingerprint, first.warnings)
    for ours, theirs in zip(second.domains, first.domains, strict=True):
        assert (ours.name, ours.weight) == (theirs.name, theirs.weight)
        assert np.array_equal(ours.train, theirs.train)
        assert np.array_equal(ours.held_out, theirs.held_out)
    assert all(map(np.array_equal, second.held_out, first.held_out))


def change_text(text: Path) -> dict[str, Any]:
    path = text / "garden.jsonl"
    kept = path.stat()
    # Of the same length and age: only its content says that it is another.
    path.write_text(path.read_text().replace("a", "b", 1))
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    return {}


def change_tokenizer(_: Path) -> dict[str, Any]:
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(["espalier"])
    return {"tokenizer": tokenizer}


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text": change_text,
    "tokenizer": change_tokenizer,
    "length": lambda _: {"max_train_tokens": 4000},
    "held-out share": lambda _: {"data": {"held_out_fraction": 0.3}},
    "evaluation": lambda _: {"evaluations": RunsOfWords(["word " * 20])},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_what_is_read_has_it_read_anew(
    opened: Open, text: Path, change: str
) -> None:
    opened()
    changed = CHANGES[change](text)
    _, read = opened(**changed)
    assert read > 0
    _, read_again = opened(**changed)
    assert read_again == 0


@pytest.mark.parametrize("harm", ["gone", "shorter", "unfinished"])
def test_what_is_damaged_is_tokenised_again(opened: Open, tmp_path: Path, harm: str) -> None:
    expected, _ = opened()
    tokens = np.array(expected.domains[0].train)
    path = tmp_path / "corpus" / "000.train.bin"
    if harm == "gone":
        path.unlink()
    elif harm == "shorter":
        path.write_bytes(path.read_bytes()[:100])
    else:
        (tmp_path / "corpus" / "corpus.json").write_text("{")
    found, read = opened()
    assert read > 0
    assert np.array_equal(found.domains[0].train, tokens)


def test_the_mixture_may_change_without_another_reading(opened: Open) -> None:
    opened()
    _, read = opened(data={"mixture": {"kind": "dynamic"}})
    assert read == 0
