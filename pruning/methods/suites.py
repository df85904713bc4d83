"""The recipe's suites of a run's model as it stands: reported as they come, kept for manifests."""

from collections.abc import Iterator

from pruning.evaluation.suites import SuiteScore, run_suites
from pruning.events import EvaluationFinished, EvaluationStage
from pruning.manifest import Measurement
from pruning.methods.run import Run
from pruning.paired import encode_rows

_CACHE = "evaluations"


def measure_suites(run: Run, stage: EvaluationStage, increment: int) -> None:
    """Measure the model by every suite, if the recipe wants it of this increment."""
    wanted = run.recipe.evaluation.suites_of == "every" or increment in (0, len(run.increments))
    if run.recipe.evaluation.suites and wanted:
        run.measurements += run.ranks.from_first(lambda: list(_measure(run, stage, increment)))


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
