import json
from pathlib import Path

from pruning.events import EvaluationFinished, Event
from pruning.manifest import read_manifest
from pruning.paired import compare_rows, decode_rows
from pruning.pipeline import run
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer

ROWS = [
    {"query": f"Page {index}: the gardener", "choices": ["cuts the branch", "zzz"], "gold": 0}
    for index in range(12)
]


def test_base_cut_final_and_another_model_answer_the_same_rows(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    other = tmp_path / "other"
    make_tiny_model("qwen2", seed=3, num_hidden_layers=2).save_pretrained(other)
    make_tiny_tokenizer().save_pretrained(other)
    recipe = make_recipe(
        tiny_model_dir,
        corpus,
        data={
            "train": [{"name": "own", "source": str(corpus), "license": "CC0"}],
            "held_out_fraction": 0.1,
        },
        schedule={"num_increments": 2, "num_tokens": 8 * 256},
        evaluation={
            "context_length": 64,
            "speed": False,
            "suites": [{"kind": "rows", "name": "own", "source": str(path)}],
            "first_rows": 4,
            "compare_with": [str(other)],
        },
    )
    events: list[Event] = []
    run(recipe, tmp_path / "out", events.append, device="cpu")
    looks = [e for e in events if isinstance(e, EvaluationFinished) and e.suite == "own"]
    assert {(e.stage, e.increment) for e in looks} == {
        ("base", 0),
        ("pruned", 2),
        ("recovered", 2),
    }
    assert {e.num_samples for e in looks} == {4, 12}
    manifest = read_manifest(tmp_path / "out" / "increment-0002")
    kept = {
        m.stage: decode_rows(m.rows)
        for m in manifest.measurements
        if (m.suite, m.metric) == ("own", "acc") and m.rows is not None
    }
    assert {stage: len(rows) for stage, rows in kept.items()} == {
        "base": 12,
        "pruned": 12,
        "recovered": 12,
    }
    found = compare_rows(kept["base"], kept["recovered"])
    assert found is not None
    card = (tmp_path / "out" / "increment-0002" / "README.md").read_text()
    assert f"| own | acc | {found.difference:+.4g} | {found.low:+.4g} to" in card
    assert "(CC0)" in card
    (theirs,) = [m for m in manifest.measurements if (m.suite, m.metric) == ("own@other", "acc")]
    assert theirs.protocol["model"] == str(other)
    assert theirs.rows is not None
    assert len(decode_rows(theirs.rows)) == 12
    assert f"| {other} | own@other | acc |" in card
