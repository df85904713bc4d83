import json
from pathlib import Path

from pruning.events import Event, RunWarning
from pruning.pipeline import run
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.text import make_documents


def test_text_that_the_suites_ask_is_not_trained_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    asked = make_documents(1)[0]  # The corpus begins with it.
    rows = tmp_path / "rows.jsonl"
    row = {"query": asked[: len(asked) // 2], "choices": ["yes", "no"], "gold": 0}
    rows.write_text(json.dumps(row) + "\n" + json.dumps({**row, "gold": 1}) + "\n")
    recipe = make_recipe(
        tiny_model_dir,
        corpus,
        data={"train": str(corpus), "held_out_fraction": 0.1, "decontaminate": True},
        schedule={"num_increments": 1, "num_tokens": 4 * 256},
        evaluation={
            "context_length": 64,
            "speed": False,
            "suites": [{"kind": "rows", "name": "own", "source": str(rows)}],
        },
    )
    events: list[Event] = []
    run(recipe, tmp_path / "out", events.append, device="cpu")
    (warning,) = [e for e in events if isinstance(e, RunWarning) and e.code == "text_left_out"]
    assert "1 of 60 documents left out: 0 copies, 0 near copies, 1 that share" in warning.message
