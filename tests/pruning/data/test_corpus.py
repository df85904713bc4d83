import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pruning.data.corpus import Corpus, build_corpus
from pruning.errors import InvalidData
from pruning.recipe_parts.data import Data
from tests.pruning.text import make_documents


def write_jsonl(path: Path, documents: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))


def build(
    data: object, tokenizer: PreTrainedTokenizerFast, directory: Path, **options: int
) -> Corpus:
    return build_corpus(Data.model_validate(data), tokenizer, directory, **options)


def documents_of(tokens: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    text = tokenizer.decode(tokens.tolist())
    return text.split(tokenizer.eos_token)[:-1]


def test_documents_are_packed_with_the_end_token_between_them(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    documents = make_documents(30)
    write_jsonl(tmp_path / "a.jsonl", documents)
    corpus = build({"train": str(tmp_path / "a.jsonl")}, tiny_tokenizer, tmp_path / "corpus")
    (domain,) = corpus.domains
    found = documents_of(domain.train, tiny_tokenizer) + documents_of(
        domain.held_out, tiny_tokenizer
    )
    assert sorted(found) == sorted(documents)
    assert domain.train.dtype == np.uint16


def test_held_out_documents_are_never_trained_on(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    documents = make_documents(200)
    write_jsonl(tmp_path / "a.jsonl", documents[:150])
    write_jsonl(tmp_path / "b.jsonl", documents[50:])
    data = {
        "train": str(tmp_path),
        "held_out_fraction": 0.2,
        "max_held_out_tokens": 100_000,
    }
    corpus = build(data, tiny_tokenizer, tmp_path / "corpus")
    train = {d for domain in corpus.domains for d in documents_of(domain.train, tiny_tokenizer)}
    held = {d for domain in corpus.domains for d in documents_of(domain.held_out, tiny_tokenizer)}
    assert held
    assert train | held == set(documents)
    assert not train & held


def test_an_explicit_evaluation_text_is_kept_out_of_training(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    documents = make_documents(20)
    write_jsonl(tmp_path / "a.jsonl", documents)
    write_jsonl(tmp_path / "test.jsonl", documents[:5])
    corpus = build(
        {"train": str(tmp_path / "a.jsonl"), "evaluation": str(tmp_path / "test.jsonl")},
        tiny_tokenizer,
        tmp_path / "corpus",
    )
    (held_out,) = corpus.held_out
    assert documents_of(held_out, tiny_tokenizer) == documents[:5]
    assert documents_of(corpus.domains[0].train, tiny_tokenizer) == documents[5:]


def test_reading_stops_where_the_run_has_enough(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_jsonl(tmp_path / "a.jsonl", make_documents(400))
    data = {"train": str(tmp_path / "a.jsonl"), "max_held_out_tokens": 300}
    corpus = build(data, tiny_tokenizer, tmp_path / "corpus", max_train_tokens=1000)
    longest = max(len(ids) for ids in tiny_tokenizer(make_documents(400))["input_ids"]) + 1
    assert 1000 <= len(corpus.domains[0].train) < 1000 + longest
    # And the end of the last document.
    assert len(corpus.domains[0].held_out) == 300 + 1


@pytest.mark.parametrize("explicit", [False, True])
def test_held_out_text_is_cut_where_the_recipe_says_inside_a_document_too(
    explicit: bool, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    pages = [" ".join(make_documents(50, seed=seed)) for seed in range(4)]
    write_jsonl(tmp_path / "books.jsonl", pages)
    write_jsonl(tmp_path / "test.jsonl", pages[:1])
    data: dict[str, Any] = {"train": str(tmp_path / "books.jsonl")}
    if explicit:
        data |= {"evaluation": str(tmp_path / "test.jsonl")}
    short, long = (
        build(data | {"max_held_out_tokens": most}, tiny_tokenizer, tmp_path / str(most))
        for most in (200, 100_000)
    )
    (start,), (whole,) = short.held_out, long.held_out
    assert len(start) == 200 + 1 < len(whole)
    assert np.array_equal(start[:200], whole[:200])
    trained = documents_of(short.domains[0].train, tiny_tokenizer)
    assert trained == documents_of(long.domains[0].train, tiny_tokenizer)
    assert len(trained) == 3


def test_the_fingerprint_follows_the_content(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    fingerprints = []
    for seed in (0, 0, 1):
        write_jsonl(tmp_path / "a.jsonl", make_documents(20, seed=seed))
        data = {"train": str(tmp_path / "a.jsonl")}
        fingerprints.append(build(data, tiny_tokenizer, tmp_path / "corpus").fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_weights_are_token_shares_unless_given(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_jsonl(tmp_path / "a.jsonl", make_documents(100, seed=1))
    write_jsonl(tmp_path / "b.jsonl", make_documents(100, seed=2, sentences=36))
    sources = [{"name": n, "source": str(tmp_path / f"{n}.jsonl")} for n in "ab"]
    by_size = build({"train": sources}, tiny_tokenizer, tmp_path / "corpus")
    total = by_size.num_train_tokens
    assert [d.weight for d in by_size.domains] == pytest.approx(
        [len(d.train) / total for d in by_size.domains]
    )
    given = [{**s, "weight": w} for s, w in zip(sources, (3, 1), strict=True)]
    by_hand = build({"train": given}, tiny_tokenizer, tmp_path / "corpus")
    assert [d.weight for d in by_hand.domains] == pytest.approx([0.75, 0.25])


def test_malformed_rows_are_a_warning_while_they_are_few(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_jsonl(tmp_path / "a.jsonl", make_documents(20))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{broken\n")
    data = {"train": str(tmp_path / "a.jsonl")}
    corpus = build(data, tiny_tokenizer, tmp_path / "corpus")
    assert corpus.warnings == (
        "domain train: 1 of 21 rows unusable (row 21: not JSON: Expecting property name enclosed "
        "in double quotes: line 1 column 2 (char 1))",
    )


def test_a_single_document_leaves_nothing_to_evaluate_on(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = {"train": {"kind": "inline", "documents": ["only one"]}}
    with pytest.raises(InvalidData, match="left to evaluate on"):
        build(data, tiny_tokenizer, tmp_path)
