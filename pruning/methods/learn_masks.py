"""The phase in which masks are learned: with the weights, or where nothing trains, alone.

Nothing of it is kept while it goes: a run that ends in it begins the increment anew.
"""

import torch
from torch import Tensor

from pruning.data.calibration import calibration_batches
from pruning.errors import InvalidRecipe
from pruning.importance.mask_targets import (
    MaskTarget,
    ShapeTarget,
    SizeTarget,
    Targets,
    target_shares,
)
from pruning.importance.mask_training import MaskTraining
from pruning.importance.masks import Masks
from pruning.methods.decide import decide
from pruning.methods.increments import Increment
from pruning.methods.mixing import update_mixture
from pruning.methods.run import Run
from pruning.models.freezing import frozen
from pruning.models.geometry import count_prunable_parameters
from pruning.models.loss import training_loss
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import MASKED_AXES, Axis


def learn_masks(run: Run, increment: Increment) -> Masks | None:
    """Learn masks that take what the increment is to take, and leave them without noise.

    None when it was asked to stop.
    """
    spared = _spared(run)
    target, axes = _target(run, increment, num_spared=len(spared))
    masks = Masks(run.model, axes, spared=spared)
    if not masks.all():
        return masks
    training = MaskTraining(masks, target, seed=(run.recipe.seed, increment.number))
    with masks.applied():
        finished = True
        if run.loop.progress.step < increment.pruning_until_step:
            finished = _learn_with_weights(run, increment, training)
        else:
            _learn_alone(run, increment, training)
    masks.settle()
    return masks if finished else None


def _learn_with_weights(run: Run, increment: Increment, training: MaskTraining) -> bool:
    """Whether the phase came to its end."""
    first, until = run.loop.progress.step, increment.pruning_until_step
    stopped = False

    def after_step() -> bool:
        nonlocal stopped
        step = run.loop.progress.step
        training.step((step - first) / (until - first))
        if step % run.recipe.data.mixture.update_steps == 0:
            training.masks.settle()
            update_mixture(run, increment.number)
            training.masks.take_drawn()
        stopped = run.asked_to_stop()
        return stopped

    run.loop.train(until, increment=increment.number, after_step=after_step)
    return not stopped


def _learn_alone(run: Run, increment: Increment, training: MaskTraining) -> None:
    """One step for each batch of calibration text; the weights stay."""
    batches = calibration_batches(
        run.corpus.domains,
        run.calibration,
        seed=run.recipe.seed,
        increment=increment.number,
    )
    with frozen(run.model), torch.enable_grad():
        for number, ids_BT in enumerate(batches, start=1):
            _mean_loss(run, ids_BT).backward()  # type: ignore[no-untyped-call]  # torch's own
            training.step(number / len(batches))


def _mean_loss(run: Run, ids_BT: Tensor) -> Tensor:
    total = training_loss(run.model, ids_BT.to(run.device), run.recipe.recovery.precision)
    return total / (ids_BT.shape[0] * (ids_BT.shape[1] - 1))


def _spared(run: Run) -> frozenset[int]:
    """Positions of the layers that the constraints protect."""
    constraints, num_layers = run.recipe.allocation.constraints, len(run.plan.layers)
    return frozenset(
        position
        for position, index in enumerate(run.plan.living)
        if constraints.protects(index, num_layers)
    )


def _target(
    run: Run, increment: Increment, *, num_spared: int
) -> tuple[MaskTarget, tuple[Axis, ...]]:
    """What the masks are to take, and of which axes there are masks.

    A first plan, made as if all groups were alike, says where the increment leads to. Where it
    leads to layers that are alike, the masks are held to their shape; else to the size, and to the
    width of the residual stream, which no importance decides.
    """
    axes = run.recipe.axes
    alike = Masks(run.model, MASKED_AXES).scores()
    first_plan, _ = decide(run, alike, increment.target_num_parameters)
    width = run.model.config.hidden_size
    hidden = 0.0 if first_plan.hidden is None else 1 - len(first_plan.hidden) / width
    if not _leads_to_layers_alike(run):
        parts: list[MaskTarget] = [SizeTarget(_share_of_layers(run, increment, first_plan))]
        if hidden > 0:
            parts.append(ShapeTarget({"hidden": hidden}))
        return Targets(tuple(parts)), axes
    before, after = run.geometry.widths(run.plan), run.geometry.widths(first_plan)
    shares = {} if axes == ("layer",) else target_shares(before[0], after[0])
    shares["layer"] = (len(before) - len(after)) / max(1, len(before) - num_spared)
    closed = {axis: share for axis, share in {**shares, "hidden": hidden}.items() if share > 0}
    return ShapeTarget(closed), tuple(closed)


def _leads_to_layers_alike(run: Run) -> bool:
    shape, layout = run.recipe.targets[-1].shape, run.recipe.allocation.layout
    whole = set(run.recipe.axes) <= {"layer", "hidden"}
    return shape is not None or layout == "uniform" or whole


def _share_of_layers(run: Run, increment: Increment, plan: PruningPlan) -> float:
    """The share of the layers' parameters that goes, where `plan` says how wide the stream is."""
    outside = run.geometry.narrowed(plan).num_fixed_parameters
    left = increment.target_num_parameters - outside
    return max(0.0, 1 - left / count_prunable_parameters(run.model))


def check_ranks(run: Run) -> None:
    """Refuse to prune while several ranks train: masks and saliency live in one process.

    Raises:
        InvalidRecipe: the recipe asks for that.
    """
    if run.ranks.count > 1 and run.recipe.importance.kind == "pca_energy":
        raise InvalidRecipe(
            f"importance 'pca_energy' is measured in one process, not in {run.ranks.count}",
            param="importance.kind",
            hint="one process",
        )
    if run.ranks.count > 1 and run.recipe.schedule.kind != "staged":
        raise InvalidRecipe(
            f"schedule.kind {run.recipe.schedule.kind!r} runs in one process, not in "
            f"{run.ranks.count}",
            param="schedule.kind",
            hint="schedule.kind 'staged'",
        )
