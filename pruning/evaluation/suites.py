"""The evaluation suites of a recipe, cheap ones first, each number with how it was measured."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.sources import ReadReport, read_documents
from pruning.data.tokens import Tokens, token_dtype
from pruning.errors import InvalidData, InvalidRecipe
from pruning.evaluation.perplexity import Perplexity, evaluate_perplexity
from pruning.evaluation.score_cache import ScoreCache, cache_key, model_fingerprint
from pruning.models.loss import Precision
from pruning.recipe_parts.data import PathData
from pruning.recipe_parts.evaluation import Evaluation, HarnessSuite, PerplexitySuite, RowsSuite

_PARAM = "evaluation.suites"


@dataclass(frozen=True, kw_only=True)
class SuiteScore:
    """One number. `rows` are the outcomes it is the mean of, where it is one.

    `complete` is false for a first look at a task's first rows; the whole follows.
    """

    suite: str
    metric: str
    value: float
    stderr: float | None
    num_samples: int
    rows: tuple[float, ...] | None
    protocol: dict[str, str | int | float | bool | None]
    complete: bool = True


def run_suites(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Evaluation,
    *,
    directory: Path,
) -> Iterator[SuiteScore]:
    """Measure a model by every suite; what `directory` keeps of an earlier try is not done again.

    Raises:
        InvalidData: a text or rows cannot be read, or a task is unknown.
        InvalidRecipe: there are tasks, and lm-eval is not installed.
    """
    if not evaluation.suites:
        return
    cache = ScoreCache(directory / f"{model_fingerprint(model)}-{evaluation.precision}.jsonl")
    for suite in evaluation.suites:
        if isinstance(suite, PerplexitySuite):
            yield from _perplexities(model, tokenizer, suite, evaluation.precision, cache)
    tasks = [suite for suite in evaluation.suites if not isinstance(suite, PerplexitySuite)]
    if tasks:
        yield from _task_scores(model, tokenizer, tasks, evaluation, cache)


def _task_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suites: Sequence[HarnessSuite | RowsSuite],
    evaluation: Evaluation,
    cache: ScoreCache,
) -> Iterator[SuiteScore]:
    """The first rows of all tasks, then all rows of each."""
    tasks = import_tasks()
    loaded = tasks.load_tasks(suites)
    first = evaluation.first_rows
    for limit_of_look, complete in ((first, False), (None, True)) if first else ((None, True),):
        for suite in suites:
            limit = min(filter(None, (limit_of_look, suite.limit)), default=None)
            if not complete and limit == suite.limit:
                continue
            for score in tasks.run_tasks(
                model,
                tokenizer,
                loaded[suite.name],
                limit=limit,
                precision=evaluation.precision,
                cache=cache,
            ):
                yield SuiteScore(
                    suite=score.task,
                    metric=score.metric,
                    value=score.value,
                    stderr=score.stderr,
                    num_samples=int(score.protocol["num_rows"] or 0),
                    rows=None if score.rows is None else tuple(score.rows.tolist()),
                    protocol=score.protocol,
                    complete=complete,
                )


def import_tasks() -> ModuleType:
    """`pruning.evaluation.tasks`: an extra of its own, and seconds that others need not wait for.

    Raises:
        InvalidRecipe: lm-eval is not installed.
    """
    try:
        from pruning.evaluation import tasks
    except ImportError as error:
        raise InvalidRecipe(
            f"tasks need lm-eval: {error}", param=_PARAM, hint="Install espalier[evaluation]."
        ) from error
    return tasks


def _perplexities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: PerplexitySuite,
    precision: Precision,
    cache: ScoreCache,
) -> Iterator[SuiteScore]:
    text = read_text(suite)
    tokens = encode_text(tokenizer, text)[: suite.max_tokens]
    if len(tokens) < 2:
        raise InvalidData(f"suite {suite.name}: the text is empty", param=_PARAM)
    fingerprint = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    vocabulary = tokenizer_fingerprint(tokenizer)
    for length in suite.context_lengths:
        key = cache_key("perplexity", fingerprint, vocabulary, len(tokens), length, suite.join)
        if cache.get(key) is None:
            found = evaluate_perplexity(
                model,
                [tokens],
                context_length=length,
                precision=precision,
                data_fingerprint=fingerprint,
            )
            cache.add({key: _kept(found, join=suite.join, tokenizer=vocabulary)})
        kept = cache.get(key)
        yield SuiteScore(
            suite=suite.name,
            metric=f"perplexity.{length}",
            **{**kept, "rows": tuple(kept["rows"])},
        )


def _kept(found: Perplexity, *, join: str, tokenizer: str) -> dict[str, Any]:
    return {
        "value": found.value,
        "stderr": found.stderr,
        "num_samples": found.num_windows,
        "rows": found.window_losses,
        "protocol": {
            **found.protocol,
            "join": join,
            "special_tokens": False,
            "tokenizer": tokenizer,
        },
    }


def read_text(suite: PerplexitySuite) -> str:
    """The text of a perplexity suite, its lines joined as the suite says.

    Raises:
        InvalidData: it cannot be read.
    """
    source = suite.source
    if isinstance(source, PathData) and Path(source.path).suffix in (".txt", ".md", ".raw"):
        try:
            text = Path(source.path).read_bytes().decode("utf-8")
        except (OSError, ValueError) as error:
            raise InvalidData(f"{source.path}: cannot be read: {error}", param=_PARAM) from error
    else:
        text = "\n\n".join(read_documents(source, ReadReport()))
    return join_wikitext(text) if suite.join == "wikitext" else text


def join_wikitext(text: str) -> str:
    """Lines as the rows of the hub's WikiText-2, joined as GPTQ and most pruning papers do.

    A blank line is an empty row, any other keeps its newline.
    """
    rows = ["" if not line.strip() else line for line in text.splitlines(keepends=True)]
    return "\n\n".join(rows)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the vocabulary: perplexities of different ones are of different tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    """Ids of a whole text in one piece, without special tokens."""
    ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return np.asarray(ids["input_ids"], dtype=token_dtype(len(tokenizer)))
