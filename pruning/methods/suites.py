"""The recipe's suites of a run's model as it stands: reported as they come, kept for manifests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.evaluation.suites import SuiteScore, run_suites
from pruning.events import EvaluationFinished, EvaluationStage
from pruning.manifest import Measurement
from pruning.methods.run import Run
from pruning.models.geometry import count_parameters
from pruning.models.load import load_base_model
from pruning.paired import encode_rows
from pruning.recipe_parts.model import PathModel

_CACHE = "evaluations"
_MAX_NAME = 64
OTHER_MODEL = "@"
"""Between a suite and the model it measured, where that is not the run's own."""


def measure_suites(run: Run, stage: EvaluationStage, increment: int) -> None:
    """Measure the model by every suite, if the recipe wants it of this increment."""
    wanted = run.recipe.evaluation.suites_of == "every" or increment in (0, len(run.increments))
    if run.recipe.evaluation.suites and wanted:
        run.measurements += run.ranks.from_first(lambda: list(_measure(run, stage, increment)))


def measure_others(run: Run) -> None:
    """Measure the models to compare with by the same suites, one after the other."""
    if run.recipe.evaluation.suites and run.recipe.evaluation.compare_with:
        run.measurements += run.ranks.from_first(lambda: list(_measure_others(run)))


def _measure_others(run: Run) -> Iterator[Measurement]:
    for source in run.recipe.evaluation.compare_with:
        name = source.path if isinstance(source, PathModel) else source.id
        loaded = load_base_model(source, dtype=torch.float32)
        said = {"model": name, "num_parameters": count_parameters(loaded.model)}
        for measurement in _measure_model(run, loaded.model.to(run.device), loaded.tokenizer):
            yield _reported(
                run,
                measurement,
                suite=f"{measurement.suite}{OTHER_MODEL}{Path(name).name}"[:_MAX_NAME],
                protocol={**measurement.protocol, **said},
            )


def _measure_model(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Measurement]:
    scores = run_suites(model, tokenizer, run.recipe.evaluation, directory=run.out_dir / _CACHE)
    yield from (_measurement(score, "base", 0) for score in scores if score.complete)


def _reported(run: Run, measurement: Measurement, **changes: Any) -> Measurement:
    changed = measurement.model_copy(update=changes)
    run.emit(EvaluationFinished(num_tokens=0, **changed.model_dump()))
    return changed


def _measure(run: Run, stage: EvaluationStage, increment: int) -> Iterator[Measurement]:
    """Every number is reported; those over all rows are kept."""
    for score in run_suites(
        run.model, run.tokenizer, run.recipe.evaluation, directory=run.out_dir / _CACHE
    ):
        measurement = _measurement(score, stage, increment)
        run.emit(EvaluationFinished(num_tokens=run.num_tokens, **measurement.model_dump()))
        if score.complete:
            yield measurement


def _measurement(score: SuiteScore, stage: EvaluationStage, increment: int) -> Measurement:
    return Measurement(
        stage=stage,
        increment=increment,
        suite=score.suite,
        metric=score.metric,
        value=score.value,
        stderr=score.stderr,
        num_samples=score.num_samples,
        protocol=score.protocol,
        rows=None if score.rows is None else encode_rows(score.rows),
    )
