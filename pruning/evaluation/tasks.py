"""Tasks, named ones and local rows alike, through lm-evaluation-harness on our own scores."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from evaluate import config as evaluate_config
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.errors import InvalidData
from pruning.evaluation.harness import HarnessModel
from pruning.evaluation.rows import PRIMARY_METRICS, build_task
from pruning.evaluation.score_cache import ScoreCache
from pruning.models.loss import Precision
from pruning.recipe_parts.evaluation import HarnessSuite, RowsSuite

_BOOTSTRAP_DRAWS = 1000
"""For metrics without a closed standard error, such as perplexity."""
_FEWSHOT_SEED = 1234

TaskSuite = HarnessSuite | RowsSuite


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task. `rows` has the outcome of each row, where it is a number a row."""

    task: str
    metric: str
    value: float
    stderr: float | None
    rows: NDArray[np.float32] | None
    protocol: dict[str, str | int | float | bool | None]


def load_tasks(suites: Sequence[TaskSuite]) -> dict[str, dict[str, Task]]:
    """The harness's tasks of each suite, by its name: several where it names a group.

    Raises:
        InvalidData: a task is unknown, its data cannot be had, or rows are malformed.
    """
    named = any(isinstance(suite, HarnessSuite) for suite in suites)
    manager = TaskManager() if named else None
    return {suite.name: _load(suite, manager) for suite in suites}


def _load(suite: TaskSuite, manager: TaskManager | None) -> dict[str, Task]:
    if isinstance(suite, RowsSuite):
        return {suite.name: build_task(suite)}
    if manager is None or suite.task not in manager.all_tasks:
        raise InvalidData(
            f"lm-eval {version('lm_eval')} has no task {suite.task!r}",
            param="evaluation.suites",
            hint="`lm-eval ls tasks` lists them.",
        )
    try:
        with _no_metric_scripts():
            tasks: dict[str, Task] = manager.load([suite.task])["tasks"]
    except (OSError, ValueError, ConnectionError) as error:
        raise InvalidData(f"task {suite.task}: {error}", param="evaluation.suites") from error
    for task in tasks.values():
        if suite.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=suite.num_fewshot)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return tasks


@contextmanager
def _no_metric_scripts() -> Iterator[None]:
    """A metric that the harness does not bring would be fetched from the hub, and run."""
    before = evaluate_config.HF_EVALUATE_OFFLINE
    evaluate_config.HF_EVALUATE_OFFLINE = True
    try:
        yield
    finally:
        evaluate_config.HF_EVALUATE_OFFLINE = before


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Task],
    *,
    limit: int | None,
    precision: Precision,
    cache: ScoreCache,
) -> list[TaskScore]:
    """Every metric of some tasks, on the first `limit` rows of each."""
    lm = HarnessModel(model, tokenizer, precision=precision, cache=cache)
    found = evaluate(
        lm=lm,
        task_dict={"tasks": dict(tasks), "groups": {}},
        limit=limit,
        bootstrap_iters=_BOOTSTRAP_DRAWS,
        log_samples=True,
    )
    return [
        score
        for name, results in found["results"].items()
        for score in _scores_of(name, results, found["samples"][name], tasks[name], lm)
    ]


def score_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suites: Sequence[RowsSuite],
    *,
    limit: int | None = None,
    precision: Precision = "float32",
) -> dict[str, TaskScore]:
    """The primary metric of each suite of local rows, on its first `limit` rows.

    Raises:
        InvalidData: rows are malformed.
    """
    tasks = {suite.name: build_task(suite) for suite in suites}
    wanted = {suite.name: PRIMARY_METRICS[suite.rows] for suite in suites}
    scores = run_tasks(
        model, tokenizer, tasks, limit=limit, precision=precision, cache=ScoreCache(None)
    )
    return {score.task: score for score in scores if score.metric == wanted[score.task]}


def _scores_of(
    name: str,
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    task: Task,
    lm: HarnessModel,
) -> Iterable[TaskScore]:
    for key, value in results.items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = results.get(f"{metric}_stderr,{filter_name}")
        mine = [sample for sample in samples if sample["filter"] == filter_name]
        yield TaskScore(
            task=name,
            metric=metric if filter_name == "none" else f"{metric}.{filter_name}"[:64],
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, int | float) else None,
            rows=_rows(mine, metric),
            protocol=_protocol(task, mine, lm),
        )


def _rows(samples: Sequence[Mapping[str, Any]], metric: str) -> NDArray[np.float32] | None:
    values = [sample.get(metric) for sample in sorted(samples, key=lambda one: one["doc_id"])]
    if not all(isinstance(value, int | float | np.number) for value in values):
        return None
    return np.array(values, dtype=np.float32)


def _protocol(
    task: Task, samples: Sequence[Mapping[str, Any]], lm: HarnessModel
) -> dict[str, str | int | float | bool | None]:
    """All that a number depends on beside the model."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda one: one["doc_id"]):
        digest.update(f"{sample['doc_hash']}{sample['prompt_hash']}".encode())
    return {
        "harness": f"lm-eval {version('lm_eval')}",
        "task_version": str(task.VERSION),
        "num_fewshot": int(task.config.num_fewshot or 0),
        "num_rows": len({sample["doc_id"] for sample in samples}),
        "data": digest.hexdigest(),
        "context_length": lm.max_length,
        "precision": lm.precision,
        "special_tokens": len(lm.tok_encode("a")) > len(lm.tok_encode("a", False)),
    }
