"""The demo's text comes from the installed packages and is the same each time."""

import json
from pathlib import Path

from espalier.demo.corpus import CHARACTERS_PER_TOKEN, write_corpus


def read(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_corpus_is_as_long_as_asked_and_the_same_each_time(tmp_path: Path) -> None:
    first = write_corpus(tmp_path / "a", num_tokens=20_000)
    second = write_corpus(tmp_path / "b", num_tokens=20_000)
    for name in ("docs.jsonl", "code.jsonl"):
        documents = read(first / name)
        assert documents == read(second / name)
        assert len(set(documents)) == len(documents)
        assert 0.9 < sum(map(len, documents)) / (10_000 * CHARACTERS_PER_TOKEN) < 1.3


def test_a_domain_has_enough_documents_to_hold_some_out(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, num_tokens=80_000)
    assert min(len(read(corpus / name)) for name in ("docs.jsonl", "code.jsonl")) > 40
