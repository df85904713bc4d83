"""What the recipe's evaluations ask, as texts that training must not have seen."""

from collections.abc import Iterator, Mapping
from typing import Any

from pruning.data.cleaning import RunsOfWords
from pruning.data.sources import ReadReport, read_documents
from pruning.evaluation.suites import import_tasks, read_text
from pruning.recipe import Recipe
from pruning.recipe_parts.evaluation import PerplexitySuite


def asked_of(recipe: Recipe) -> RunsOfWords | None:
    """The runs of words of all evaluations, if the recipe wants training text cleared of them.

    Raises:
        InvalidData: a text or rows cannot be read, or a task is unknown.
    """
    if not recipe.data.decontaminate:
        return None
    return RunsOfWords(_texts(recipe))


def _texts(recipe: Recipe) -> Iterator[str]:
    if recipe.data.evaluation is not None:
        yield from read_documents(recipe.data.evaluation, ReadReport())
    suites = recipe.evaluation.suites
    for suite in suites:
        if isinstance(suite, PerplexitySuite):
            yield read_text(suite)
    tasks = [suite for suite in suites if not isinstance(suite, PerplexitySuite)]
    for group in import_tasks().load_tasks(tasks).values() if tasks else ():
        for task in group.values():
            for row in task.eval_docs:
                yield from _texts_of(task, row)


def _texts_of(task: Any, row: Mapping[str, Any]) -> Iterator[str]:
    """Each text of a row, and the question with each answer: runs cross from one to the other."""
    yield from (value for value in row.values() if isinstance(value, str))
    question = task.doc_to_text(row)
    answers = task.doc_to_choice(row) if task.config.doc_to_choice else [task.doc_to_target(row)]
    if isinstance(question, str):
        yield from (f"{question} {answer}" for answer in answers)
    else:  # The choices are contexts of one continuation.
        yield from (f"{answer} {task.doc_to_target(row)}" for answer in answers)
