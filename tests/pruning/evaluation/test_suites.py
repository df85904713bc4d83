import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pruning.errors import InvalidData
from pruning.evaluation.suites import SuiteScore, join_wikitext, run_suites
from pruning.recipe_parts.evaluation import Evaluation
from tests.pruning.text import make_documents

TEXT = "\n\n".join(make_documents(6)) + "\n"
ROWS = [
    {"query": "The gardener cuts", "choices": ["the branch", "in winter"], "gold": index % 2}
    for index in range(5)
]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    *suites: Any,
    first_rows: int = 0,
) -> list[SuiteScore]:
    evaluation = Evaluation.model_validate({"suites": suites, "first_rows": first_rows})
    return list(run_suites(model, tokenizer, evaluation, directory=directory))


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"kind": "rows", "name": "own", "source": str(path)}


def test_perplexity_of_a_text_at_several_lengths(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "held.txt"
    path.write_text(TEXT)
    suite = {
        "kind": "perplexity",
        "name": "held",
        "source": str(path),
        "context_lengths": [16, 64],
    }
    short, long = measure(tiny_llama, tiny_tokenizer, tmp_path, suite)
    assert [short.metric, long.metric] == ["perplexity.16", "perplexity.64"]
    assert short.rows is not None
    assert short.value == pytest.approx(math.exp(np.mean(short.rows)), rel=1e-6)
    num_tokens = len(tiny_tokenizer(TEXT)["input_ids"])
    assert short.num_samples == num_tokens // 16
    assert short.protocol["data"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert short.protocol["context_length"] == 16


def test_a_perplexity_that_was_measured_is_not_measured_again(
    tmp_path: Path,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "held.txt"
    path.write_text(TEXT)
    suite = {"kind": "perplexity", "name": "held", "source": str(path), "context_lengths": [16]}
    first = measure(tiny_llama, tiny_tokenizer, tmp_path, suite)
    monkeypatch.setattr(tiny_llama, "forward", None)
    monkeypatch.setattr(tiny_llama.base_model, "forward", None)
    assert measure(tiny_llama, tiny_tokenizer, tmp_path, suite) == first


def test_wikitext_is_joined_as_the_papers_do() -> None:
    text = " \n = Title = \n \n Words . \n"
    assert join_wikitext(text) == "\n\n = Title = \n\n\n\n\n Words . \n"


def test_the_first_rows_of_a_task_are_reported_before_all(
    tmp_path: Path,
    rows: dict[str, Any],
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    scores = measure(tiny_llama, tiny_tokenizer, tmp_path / "out", rows, first_rows=2)
    assert [(s.metric, s.num_samples, s.complete) for s in scores] == [
        ("acc", 2, False),
        ("acc_norm", 2, False),
        ("acc", 5, True),
        ("acc_norm", 5, True),
    ]
    (kept,) = (tmp_path / "out").iterdir()
    assert len(kept.read_text().splitlines()) == 2  # Five equal questions with two choices.


def test_an_empty_text_is_refused(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("")
    with pytest.raises(InvalidData, match="the text is empty"):
        measure(tiny_llama, tiny_tokenizer, tmp_path, str(path))
