"""What is measured before a cut: scores to decide by, and moments to make good for it."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pruning.allocation.widths import allowed_widths
from pruning.data.calibration import calibration_batches
from pruning.importance.fisher import fisher_scores
from pruning.importance.measure import measure_importance
from pruning.importance.moments import Moments, gathering_inputs, measure_moments
from pruning.methods.run import Run
from pruning.methods.slicing import stream_scores
from pruning.models.loss import autocast
from pruning.models.projections import BlockKey
from pruning.recipe_parts.method import WITH_BIASES, WITH_MOMENTS, Axis
from pruning.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Scores of every group, and the moments of every block where the recipe repairs cuts.

    `factors` are what learned masks multiply the inputs of output projections with.
    """

    scores: Scores
    inputs: MutableMapping[BlockKey, Tensor] = field(default_factory=dict)
    gradients: MutableMapping[BlockKey, Tensor] = field(default_factory=dict)
    factors: Mapping[BlockKey, Tensor] = field(default_factory=dict)
    text: Sequence[Tensor] = ()
    """What rotations block by block are measured on, token ids [B, T]."""


def calibrate(run: Run, draw: int) -> Findings:
    """Measure the model as it stands, on text that is another for each `draw`."""
    importance = run.recipe.importance
    batches = _batches(run, draw)
    if importance.kind == "pca_energy":
        return Findings(scores=stream_scores(run, batches), text=batches)
    repairs = run.recipe.compensation in WITH_MOMENTS
    if importance.kind == "fisher":
        moments = _moments(run, batches, gradients=True)
        scores = _fisher_scores(run, moments)
    elif repairs:
        with gathering_inputs(run.model) as moments:
            scores = _scores(run, batches)
    else:
        return Findings(scores=_scores(run, batches))
    if not repairs:
        return Findings(scores=scores)
    return Findings(scores=scores, inputs=moments.inputs, gradients=moments.gradients)


def calibrate_repair(run: Run, scores: Scores, draw: int) -> Findings:
    """Measure only what repair needs, where `scores` are known already."""
    if run.recipe.compensation not in WITH_MOMENTS:
        return Findings(scores=scores)
    moments = _moments(run, _batches(run, draw), gradients=False)
    return Findings(scores=scores, inputs=moments.inputs)


def repair_batches(run: Run, draw: int) -> list[Tensor]:
    """Text to mend the cut model by: as much as it was scored on, and other text."""
    return _batches(run, draw, part=1)


def _batches(run: Run, draw: int, part: int = 0) -> list[Tensor]:
    return [
        batch.to(run.device)
        for batch in calibration_batches(
            run.corpus.domains,
            run.calibration,
            seed=run.recipe.seed,
            increment=draw,
            part=part,
        )
    ]


def _scores(run: Run, batches: Sequence[Tensor]) -> Scores:
    with autocast(run.device, run.recipe.recovery.precision):
        return measure_importance(
            run.model,
            batches,
            run.recipe.importance,
            input_means=run.recipe.compensation in WITH_BIASES,
            hidden=run.recipe.narrows_stream,
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
    )
