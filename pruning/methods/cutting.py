"""The cut that an increment begins with: at once, or while the first part of it trains."""

import math
from dataclasses import replace

from pruning.allocation.debt import Debt
from pruning.compensation import (
    fold_factors,
    fold_means,
    merge_similar,
    refit_outputs,
    refit_with_biases,
)
from pruning.events import PruneFinished
from pruning.importance.moments import Moments
from pruning.importance.training_saliency import TrainingSaliency
from pruning.memory import give_back_memory
from pruning.methods.calibrate import Findings, calibrate, calibrate_repair, repair_batches
from pruning.methods.decide import decide
from pruning.methods.increments import Increment
from pruning.methods.learn_masks import check_ranks, learn_masks
from pruning.methods.mixing import update_mixture
from pruning.methods.run import Run
from pruning.methods.saying import saying_progress
from pruning.methods.slicing import turn_blocks
from pruning.models.distillation import frozen_copy
from pruning.models.geometry import count_parameters, layer_widths
from pruning.models.loss import product_dtype
from pruning.newton import take_newton_step, thin_moments
from pruning.plan import PruningPlan
from pruning.surgery import apply_plan
from pruning.training.averaging import keeping_distance
from pruning.training.optimizer import forget_moments


def cut(run: Run, increment: Increment) -> bool:
    """Score the groups, decide what goes, and cut model and optimizer; False if asked to stop."""
    check_ranks(run)
    _keep_teacher(run)
    trains = run.loop.progress.step < increment.pruning_until_step
    if trains and run.recipe.schedule.kind == "continuous":
        finished = _cut_while_training(run, increment)
    elif run.recipe.importance.kind == "learned_mask":
        finished = _cut_by_masks(run, increment, trains=trains)
    else:
        run.enter("calibrating", increment.number)
        with saying_progress(run, increment.number):
            findings = calibrate(run, increment.number) if run.ranks.is_first else None
        run.enter("pruning", increment.number)
        _cut_to(run, increment, findings, increment.target_num_parameters)
        finished = True
    if finished:
        run.cut_increment = increment.number
    return finished


def _cut_by_masks(run: Run, increment: Increment, *, trains: bool) -> bool:
    """Sheared-LLaMA (arXiv 2310.06694): learn masks, then cut what they have shut."""
    run.enter("training" if trains else "calibrating", increment.number)
    findings = None
    if run.ranks.is_first:
        masks = learn_masks(run, increment)
        if masks is None:
            return False
        findings = calibrate_repair(run, masks.scores(), increment.number)
        findings = replace(findings, factors=masks.input_factors())
    run.enter("pruning", increment.number)
    _cut_to(run, increment, findings, increment.target_num_parameters)
    return True


def _cut_while_training(run: Run, increment: Increment) -> bool:
    """EfficientLLM (arXiv 2502.06663): a little at a time, by what the steps before it showed."""
    run.enter("training", increment.number)
    first, size = run.loop.progress.step, count_parameters(run.model)
    num_steps = increment.pruning_until_step - first
    num_cuts = math.ceil(num_steps / run.recipe.schedule.steps_per_cut)
    saliency = _fresh_saliency(run)
    for number in range(1, num_cuts + 1):
        if not _train(run, increment, first + num_steps * number // num_cuts, saliency):
            return False
        target = size - (size - increment.target_num_parameters) * number // num_cuts
        # A step of all layers at once takes more than one share: the next ones have it behind them.
        if count_parameters(run.model) > target:
            _cut_to(run, increment, _findings(run, saliency), target)
            saliency = _fresh_saliency(run)
    return True


def _train(run: Run, increment: Increment, until: int, saliency: TrainingSaliency | None) -> bool:
    """Whether it came to its end, and was not asked to stop."""
    stopped = False

    def after_step() -> bool:
        nonlocal stopped
        if run.loop.progress.step % run.recipe.data.mixture.update_steps == 0:
            update_mixture(run, increment.number)
        stopped = run.asked_to_stop()
        return stopped

    if saliency is None:
        run.loop.train(until, increment=increment.number, after_step=after_step)
        return not stopped
    with saliency.watching(run.loop.optimizer):
        run.loop.train(until, increment=increment.number, after_step=after_step)
    return not stopped


def _fresh_saliency(run: Run) -> TrainingSaliency | None:
    """Where the importance is one that training steps show: nothing yet."""
    importance = run.recipe.importance
    if importance.kind != "taylor":
        return None
    return TrainingSaliency(run.model, importance.taylor_order, hidden=run.recipe.narrows_stream)


def _findings(run: Run, saliency: TrainingSaliency | None) -> Findings:
    # By the step, so that each cut draws other text.
    draw = run.loop.progress.step
    if saliency is None:
        return calibrate(run, draw)
    return calibrate_repair(run, saliency.scores(), draw)


def _cut_to(run: Run, increment: Increment, findings: Findings | None, target: int) -> None:
    num_parameters_before = count_parameters(run.model)
    plan, run.debt = run.ranks.from_first(lambda: _choose(run, findings, target))
    with keeping_distance(run.loop.optimizer):
        if findings is not None:
            _compensate(run, plan, findings)
        run.ranks.copy_from_first(run.model)
    give_back_memory()
    moments = _moments_after(run, plan, findings)
    apply_plan(run.model, plan, previous=run.plan, optimizer=run.loop.optimizer)
    if run.recipe.compensation == "newton":
        _step_on(run, moments, increment)
    if run.recipe.recovery.fresh_moments:
        forget_moments(run.loop.optimizer)
    run.plan = plan
    run.emit(
        PruneFinished(
            increment=increment.number,
            num_tokens=run.num_tokens,
            num_parameters_before=num_parameters_before,
            num_parameters=count_parameters(run.model),
            widths=layer_widths(run.model),
        )
    )


def _moments_after(run: Run, plan: PruningPlan, findings: Findings | None) -> Moments | None:
    """The curvatures of what `plan` leaves, on the rank that has measured them."""
    if findings is None or run.recipe.compensation != "newton":
        return None
    moments = Moments(findings.inputs, findings.gradients)
    thin_moments(run.model, moments, plan, previous=run.plan)
    return moments


def _step_on(run: Run, moments: Moments | None, increment: Increment) -> None:
    give_back_memory()
    with keeping_distance(run.loop.optimizer), saying_progress(run, increment.number):
        if moments is not None:
            take_newton_step(
                run.model,
                repair_batches(run, increment.number),
                moments,
                precision=run.recipe.recovery.precision,
            )
        run.ranks.copy_from_first(run.model)


def _choose(run: Run, findings: Findings | None, target: int) -> tuple[PruningPlan, Debt]:
    assert findings is not None, "the rank that decides has measured"
    if run.debt is None:
        # Before the first cut, so that a target out of reach is refused now and not hours later.
        decide(run, findings.scores, run.target_num_parameters)
    return decide(run, findings.scores, target)


def _compensate(run: Run, plan: PruningPlan, findings: Findings) -> None:
    fold_factors(run.model, findings.factors)
    turn_blocks(run, plan, findings.text)
    kind = run.recipe.compensation
    if kind in ("least_squares", "newton"):
        refit_outputs(
            run.model,
            plan,
            previous=run.plan,
            inputs=findings.inputs,
            ridge=run.recipe.importance.ridge,
        )
    elif kind == "affine":
        refit_with_biases(
            run.model,
            plan,
            previous=run.plan,
            inputs=findings.inputs,
            scores=findings.scores,
            ridge=run.recipe.importance.ridge,
        )
    elif kind == "merge":
        merge_similar(run.model, plan, previous=run.plan, inputs=findings.inputs)
    elif kind == "bias":
        fold_means(run.model, plan, previous=run.plan, scores=findings.scores)


def _keep_teacher(run: Run) -> None:
    """Where the recipe distils from the previous increment: a copy of it, taken before the cut."""
    distillation = run.recipe.recovery.distillation
    if distillation is None or distillation.teacher != "previous":
        return
    run.loop.teacher = None  # Frees the one before first.
    run.loop.teacher = frozen_copy(run.model, product_dtype(run.recipe.recovery.precision))
