"""What is measured before a cut: scores to decide by, and moments to make good for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pruning.allocation.widths import allowed_widths
from pruning.data.calibration import calibration_batches
from pruning.importance.fisher import fisher_scores
from pruning.importance.measure import measure_importance
from pruning.importance.moments import Moments, measure_moments
from pruning.methods.run import Run
from pruning.models.loss import autocast
from pruning.models.projections import BlockKey
from pruning.recipe import Axis
from pruning.scores import Scores


@dataclass(frozen=True)
class Findings:
    """Scores of every group, and the input moments of every block where the recipe repairs cuts."""

    scores: Scores
    inputs: Mapping[BlockKey, Tensor] = field(default_factory=dict)


def calibrate(run: Run, increment: int) -> Findings:
    """Measure the model as it stands, on text drawn anew for this increment."""
    batches = [
        batch.to(run.device)
        for batch in calibration_batches(
            run.corpus.domains,
            run.recipe.importance.calibration,
            seed=run.recipe.seed,
            increment=increment,
        )
    ]
    fisher = run.recipe.importance.kind == "fisher"
    repairs = run.recipe.compensation == "least_squares"
    moments = _moments(run, batches, gradients=fisher) if fisher or repairs else None
    return Findings(
        scores=_fisher_scores(run, moments) if fisher and moments else _scores(run, batches),
        inputs=moments.inputs if repairs and moments else {},
    )


def _scores(run: Run, batches: Sequence[Tensor]) -> Scores:
    with autocast(run.device, run.recipe.recovery.precision):
        return measure_importance(
            run.model,
            batches,
            run.recipe.importance,
            input_means=run.recipe.compensation == "bias",
        )


def _fisher_scores(run: Run, moments: Moments) -> Scores:
    constraints = run.recipe.allocation.constraints

    def widths(axis: Axis, width: int) -> tuple[int, ...]:
        return allowed_widths(axis, width, constraints)

    return fisher_scores(run.model, moments, widths=widths, ridge=run.recipe.importance.ridge)


def _moments(run: Run, batches: Sequence[Tensor], *, gradients: bool) -> Moments:
    return measure_moments(
        run.model,
        batches,
        precision=run.recipe.recovery.precision,
        gradients=gradients,
        weigh_tokens=run.recipe.importance.token_weights == "gradient",
    )
