import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pruning.errors import InvalidData
from pruning.evaluation.harness import HarnessModel
from pruning.evaluation.log_likelihood import Request
from pruning.evaluation.rows import build_task
from pruning.evaluation.score_cache import ScoreCache, model_fingerprint
from pruning.evaluation.tasks import load_tasks, run_tasks, score_rows
from pruning.recipe_parts.evaluation import HarnessSuite, RowsSuite

QUESTIONS = (
    ("What bears fruit in summer", ["the espalier", "a wall", "branches of winter"], 0),
    ("Who prunes the tree", ["the fruit", "a shape", "the gardener"], 2),
    ("When is it trained", ["season after season", "never", "by a tree"], 0),
    ("What keeps what it knew", ["a large wall", "a smaller tree", "fruit"], 1),
)
ROWS: dict[str, list[dict[str, Any]]] = {
    "choice": [{"query": q, "choices": c, "gold": g} for q, c, g in QUESTIONS],
    "letters": [{"query": q, "choices": c, "gold": g} for q, c, g in QUESTIONS],
    "partial": [
        {"query": "The gardener cut the tree as _ was tall.", "choices": ["he", "it"], "gold": 1},
        {"query": "The _ bears fruit in summer.", "choices": ["wall", "espalier"], "gold": 1},
    ],
    "lastword": [
        {"context": "A smaller tree keeps what the large one", "target": "knew"},
        {"context": "The gardener prunes the espalier each", "target": "winter"},
    ],
    "answer": [{"query": q, "target": c[g]} for q, c, g in QUESTIONS],
}
PROMPTS = {
    "choice": "Question: {query}\nAnswer:",
    "letters": "{query}\nA. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}\nAnswer:",
    "partial": "",
    "lastword": "{context} ",
    "answer": "Question: {query}\nAnswer:",
}


def make_suite(directory: Path, kind: str, **changes: Any) -> RowsSuite:
    path = directory / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    fields = {"name": kind, "source": str(path), "rows": kind, "prompt": PROMPTS[kind], **changes}
    return RowsSuite.model_validate(fields)


@pytest.mark.parametrize("kind", list(ROWS))
def test_rows_are_scored_as_the_harness_scores_them(
    kind: str, tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    suite = make_suite(tmp_path, kind)
    ours = HarnessModel(
        tiny_llama, tiny_tokenizer, precision="float32", cache=ScoreCache(tmp_path / "scores")
    )
    theirs = HFLM(pretrained=tiny_llama, tokenizer=tiny_tokenizer, batch_size=4)
    found = {}
    for name, lm in (("ours", ours), ("theirs", theirs)):
        tasks = {"tasks": {kind: build_task(suite)}, "groups": {}}
        result = evaluate(lm=lm, task_dict=tasks, bootstrap_iters=10)
        found[name] = (
            result["results"][kind],
            [response[0][0] for sample in result["samples"][kind] for response in sample["resps"]],
        )
    if kind == "answer":
        assert found["ours"][1] == found["theirs"][1]
    else:
        np.testing.assert_allclose(found["ours"][1], found["theirs"][1], atol=1e-3)
    metrics = [key for key in found["ours"][0] if key.endswith(",none") and "stderr" not in key]
    assert metrics
    for metric in metrics:
        assert found["ours"][0][metric] == pytest.approx(found["theirs"][0][metric], rel=1e-5)


def test_a_number_comes_with_its_error_and_protocol(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    scores = score_rows(tiny_llama, tiny_tokenizer, [make_suite(tmp_path, "choice")], limit=3)
    score = scores["choice"]
    assert score.metric == "acc_norm"
    assert score.rows is not None
    assert score.value == pytest.approx(score.rows.mean())
    assert score.stderr == pytest.approx(score.rows.std(ddof=1) / np.sqrt(3), rel=1e-5)
    assert score.protocol["num_rows"] == 3
    assert score.protocol["num_fewshot"] == 0
    assert score.protocol["precision"] == "float32"
    assert str(score.protocol["harness"]).startswith("lm-eval ")


def test_exemplars_stand_before_each_row(tmp_path: Path) -> None:
    exemplars = tmp_path / "exemplars.jsonl"
    exemplars.write_text(json.dumps({"query": "Is it so", "choices": ["yes", "no"], "gold": 0}))
    suite = make_suite(tmp_path, "choice", exemplars=str(exemplars), num_fewshot=1)
    task = build_task(suite)
    task.set_fewshot_seed(seed=1)
    task.build_all_requests(limit=1)
    context = task.instances[0].args[0]
    expected = "Question: Is it so\nAnswer: yes\n\nQuestion: What bears fruit in summer\nAnswer:"
    assert context == expected


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "a", "choices": ["b"], "gold": 0}, "at least two"),
        ({"query": "a", "choices": ["b", "c"], "gold": 2}, "gold must be 0 to 1"),
        ({"query": "a", "gold": 0}, "no field choices"),
    ],
)
def test_a_malformed_row_is_named(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    suite = make_suite(tmp_path, "choice")
    path = tmp_path / "choice.jsonl"
    path.write_text(json.dumps(ROWS["choice"][0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InvalidData, match=f"line 2.*{problem}"):
        build_task(suite)


def test_an_unknown_task_is_refused_before_anything_runs() -> None:
    with pytest.raises(InvalidData, match="no task 'arc_hardest'"):
        load_tasks([HarnessSuite(task="arc_hardest")])


@pytest.mark.parametrize("kind", ["choice", "answer"])
def test_what_was_scored_is_not_computed_again(
    kind: str, tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    task = {kind: build_task(make_suite(tmp_path, kind))}
    path = tmp_path / "scores.jsonl"

    def run() -> list[float]:
        cache = ScoreCache(path)
        scores = run_tasks(
            tiny_llama, tiny_tokenizer, task, limit=None, precision="float32", cache=cache
        )
        return [score.value for score in scores]

    first = run()
    lines = path.read_text()
    with path.open("a") as file:
        file.write('["cut short')
    task = {kind: build_task(make_suite(tmp_path, kind))}
    assert run() == first
    assert path.read_text().removesuffix('["cut short') == lines


def test_a_changed_weight_changes_the_fingerprint(tiny_llama: PreTrainedModel) -> None:
    before = model_fingerprint(tiny_llama)
    assert model_fingerprint(tiny_llama) == before
    tiny_llama.get_input_embeddings().weight.data[3, 3] += 1e-3
    assert model_fingerprint(tiny_llama) != before


def test_greedy_generation_ends_at_its_stop_string(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = HarnessModel(tiny_llama, tiny_tokenizer, precision="float32", cache=ScoreCache(None))
    (whole,) = lm._generate([("The gardener", {"max_gen_toks": 8})])
    middle = whole[len(whole) // 2]
    (cut,) = lm._generate([("The gardener", {"max_gen_toks": 8, "until": [middle]})])
    assert cut == whole.split(middle)[0]


def test_an_answer_is_right_when_greedy_decoding_writes_it(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = HarnessModel(tiny_llama, tiny_tokenizer, precision="float32", cache=ScoreCache(None))
    suite = make_suite(tmp_path, "answer")
    prompts = [suite.prompt.format(**row) for row in ROWS["answer"]]
    written = lm._generate([(one, {"max_gen_toks": 64, "until": ["\n"]}) for one in prompts])
    rows = [{**row, "target": text} for row, text in zip(ROWS["answer"], written, strict=True)]
    rows[0]["target"] += " and more"
    (tmp_path / "answer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = score_rows(tiny_llama, tiny_tokenizer, [suite])
    assert scores["answer"].rows is not None
    assert scores["answer"].rows.tolist() == [0, 1, 1, 1]


def test_a_text_without_context_follows_the_beginning_of_text(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = HarnessModel(tiny_llama, tiny_tokenizer, precision="float32", cache=ScoreCache(None))
    (request,) = lm._encode_pairs([("", "The tree")])
    assert request == Request((0,), tuple(lm.tok_encode("The tree")))
