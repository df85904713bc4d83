"""Local rows as tasks of lm-evaluation-harness, so that the library builds requests and metrics.

kind      row                                scored
choice    query, choices, gold               " " + each choice after the prompt
letters   the same                           " A", " B", … after the prompt that lists the choices
partial   query with one "_", choices, gold  what follows the "_", after each choice in its place
lastword  context, target                    " " + target after the prompt
answer    target                             what is written after the prompt, up to a line's end
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from pruning.errors import InvalidData
from pruning.recipe_parts.data import PathData, UploadData
from pruning.recipe_parts.evaluation import RowKind, RowsSuite

Row = dict[str, Any]

PRIMARY_METRICS: Mapping[RowKind, str] = {
    "choice": "acc_norm",
    "letters": "acc",
    "partial": "acc",
    "lastword": "acc",
    "answer": "exact_match",
}
_FIELDS: Mapping[RowKind, tuple[str, ...]] = {
    "choice": ("query", "choices", "gold"),
    "letters": ("query", "choices", "gold"),
    "partial": ("query", "choices", "gold"),
    "lastword": ("context", "target"),
    "answer": ("target",),
}
_METRICS: Mapping[RowKind, tuple[str, ...]] = {
    "choice": ("acc", "acc_norm"),
    "letters": ("acc",),
    "partial": ("acc",),
    "lastword": ("acc", "perplexity"),
    "answer": ("exact_match",),
}
_ANSWER_TOKENS = 64
_OUTPUT_TYPES: Mapping[RowKind, str] = {"lastword": "loglikelihood", "answer": "generate_until"}
_HOLE = "_"
_PARAM = "evaluation.suites"


def read_suites(index: Path, names: Sequence[str]) -> tuple[RowsSuite, ...]:
    """Suites out of an index of tasks: a JSON object of `file`, `kind` and `prompt` by name.

    A file is looked for beside the index, then one folder up.

    Raises:
        InvalidData: the index has no such task.
    """
    tasks = json.loads(index.read_text(encoding="utf-8"))
    if unknown := sorted(set(names) - set(tasks)):
        raise InvalidData(f"{index}: no task {', '.join(unknown)}", param=_PARAM)
    return tuple(_suite_of(name, tasks[name], index.parent) for name in names)


def _suite_of(name: str, task: Mapping[str, Any], folder: Path) -> RowsSuite:
    beside = folder / task["file"]
    path = beside if beside.exists() else folder.parent / task["file"]
    fields = {"name": name, "rows": task["kind"], "prompt": task["prompt"], "source": str(path)}
    return RowsSuite.model_validate(fields)


def build_task(suite: RowsSuite) -> ConfigurableTask:
    """The harness's task over the rows of a file.

    Raises:
        InvalidData: the file cannot be read, or a row is not of the suite's kind.
    """
    rows = read_rows(suite.source, suite)
    exemplars = read_rows(suite.exemplars, suite) if suite.exemplars else []
    splits = {"test": rows, **({"fewshot": exemplars} if exemplars else {})}
    config = {
        "task": suite.name,
        "custom_dataset": lambda **_: {
            name: datasets.Dataset.from_list(part) for name, part in splits.items()
        },
        "test_split": "test",
        "output_type": _OUTPUT_TYPES.get(suite.rows, "multiple_choice"),
        "metric_list": [_metric(name) for name in _METRICS[suite.rows]],
        "num_fewshot": suite.num_fewshot,
        **_prompting(suite),
        **(
            {"fewshot_split": "fewshot", "fewshot_config": {"sampler": "first_n"}}
            if exemplars
            else {}
        ),
    }
    return ConfigurableTask(config=config)


def read_rows(source: PathData | UploadData, suite: RowsSuite) -> list[Row]:
    """The rows of a JSON Lines file, each with what the suite's kind and prompt need.

    Raises:
        InvalidData: naming the line and the field at fault.
    """
    if isinstance(source, UploadData):
        raise InvalidData(f"{source.file}: only a worker can fetch uploads", param=_PARAM)
    path = Path(source.path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidData(f"{path}: cannot be read: {error}", param=_PARAM) from error
    rows = [
        _checked(line, suite, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise InvalidData(f"{path}: no rows", param=_PARAM)
    return rows


def _checked(line: str, suite: RowsSuite, where: str) -> Row:
    try:
        row = json.loads(line)
        missing = [name for name in _FIELDS[suite.rows] if name not in row]
        if missing:
            raise ValueError(f"no field {', '.join(missing)}")
        _check_choices(row, suite.rows)
        return {**row, "prompt": suite.prompt.format(**row)}
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InvalidData(
            f"{where}: {type(error).__name__}: {error}",
            param=_PARAM,
            hint=f"A row of kind {suite.rows} has {', '.join(_FIELDS[suite.rows])}.",
        ) from error


def _check_choices(row: Row, kind: RowKind) -> None:
    if kind in _OUTPUT_TYPES:
        return
    choices, gold = row["choices"], row["gold"]
    if not (isinstance(choices, list) and len(choices) > 1 and all(choices)):
        raise ValueError("choices must be at least two texts, none of them empty")
    if not (isinstance(gold, int) and 0 <= gold < len(choices)):
        raise ValueError(f"gold must be 0 to {len(choices) - 1}, got {gold!r}")
    if kind == "partial" and _HOLE not in row["query"]:
        raise ValueError(f"query has no {_HOLE!r} to put a choice into")


def _metric(name: str) -> dict[str, Any]:
    return {
        "metric": name,
        "aggregation": "perplexity" if name == "perplexity" else "mean",
        "higher_is_better": name != "perplexity",
    }


def _prompting(suite: RowsSuite) -> dict[str, Any]:
    """How the harness makes requests of a row: context, continuations, and which one is right."""
    if suite.rows == "lastword":
        return {"doc_to_text": _prompt, "doc_to_target": lambda row: f" {row['target']}"}
    if suite.rows == "answer":
        return {
            "doc_to_text": _prompt,
            "doc_to_target": lambda row: str(row["target"]).strip(),
            "generation_kwargs": {
                "until": ["\n"],
                "max_gen_toks": _ANSWER_TOKENS,
                "do_sample": False,
            },
            "filter_list": [{"name": "none", "filter": [_STRIP, {"function": "take_first"}]}],
        }
    if suite.rows == "partial":
        # For the harness, a context that is a number means: the choices are contexts.
        return {"doc_to_text": _gold, "doc_to_target": _after_hole, "doc_to_choice": _filled_holes}
    choices = _letters if suite.rows == "letters" else _choices
    return {"doc_to_text": _prompt, "doc_to_target": _gold, "doc_to_choice": choices}


def _stripped(answers: Sequence[Sequence[str]], _rows: object) -> list[list[str]]:
    return [[answer.strip() for answer in of_row] for of_row in answers]


_STRIP = {"function": "custom", "filter_fn": _stripped}


def _prompt(row: Row) -> str:
    return str(row["prompt"])


def _gold(row: Row) -> int:
    return int(row["gold"])


def _choices(row: Row) -> Sequence[str]:
    return list(row["choices"])


def _letters(row: Row) -> Sequence[str]:
    return list(ascii_uppercase[: len(row["choices"])])


def _filled_holes(row: Row) -> Sequence[str]:
    before = row["query"].partition(_HOLE)[0]
    return [before + choice for choice in row["choices"]]


def _after_hole(row: Row) -> str:
    return str(row["query"].partition(_HOLE)[2].strip())
