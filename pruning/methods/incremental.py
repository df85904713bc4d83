"""Adapt-Pruner's loop (arXiv 2502.03460): small cuts, each followed by training, to the target."""

import time

import torch
from transformers import PreTrainedModel

from pruning.checkpoint import Saved, discard_partial, save_checkpoint, training_tensors
from pruning.errors import TargetUnreachable
from pruning.evaluation.speed import as_served, measure_speeds
from pruning.events import (
    EvaluationStage,
    IncrementFinished,
    Outcome,
)
from pruning.manifest import Measurement
from pruning.methods.cutting import cut
from pruning.methods.exporting import derive
from pruning.methods.increments import Increment
from pruning.methods.keeping import Keeper
from pruning.methods.manifests import manifest_of
from pruning.methods.mixing import measure_held_out, record_domain_losses, update_mixture
from pruning.methods.run import Run
from pruning.methods.start import open_base
from pruning.methods.suites import measure_others, measure_suites
from pruning.models.geometry import count_parameters
from pruning.paired import encode_rows
from pruning.training.averaging import averaged, averages


def prune_incrementally(run: Run) -> Outcome | None:
    """Cut, train, evaluate and publish increment by increment; None when asked to stop.

    Training stops at the next step, and what the increment came to is kept as a partial checkpoint;
    low-rank factors, which no checkpoint holds, are trained to the end of their increment first.
    """
    for increment in run.increments[run.last_increment :]:
        if run.asked_to_stop():
            return None
        # A run that was killed in the middle of an increment has its cut behind it.
        if run.cut_increment < increment.number:
            if not cut(run, increment):
                return None
            evaluate(run, "pruned", increment.number)
        if not recover(run, increment):
            return None
        with averaged(run.model, run.loop.optimizer):
            evaluate(run, "recovered", increment.number)
        if _breaks_quality_floor(run, increment):
            return "quality_floor"
        publish(run, increment)
    return "target_reached"


def evaluate_base(run: Run) -> None:
    """What the pruned models will be compared with."""
    evaluate(run, "base", 0)
    measure_others(run)


def recover(run: Run, increment: Increment) -> bool:
    """Train up to the step where the increment ends; False if it was asked to stop before.

    The state is kept from time to time, and when it stops.
    """
    run.enter("training", increment.number)
    with Keeper(run, increment) as keeper:
        return _recover(run, increment, keeper)


def _recover(run: Run, increment: Increment, keeper: Keeper) -> bool:
    kept_at = time.monotonic()
    # Low-rank factors are no part of a checkpoint: an increment of theirs is whole or not at all.
    keeps_partials = run.recipe.recovery.kind == "full"
    stopped = False

    def after_step() -> bool:
        nonlocal kept_at, stopped
        step = run.loop.progress.step
        if step % run.recipe.data.mixture.update_steps == 0:
            update_mixture(run, increment.number)
        if not keeps_partials or step == increment.until_step:
            return False
        stopped = run.asked_to_stop()
        seconds = run.recipe.recovery.checkpoint_seconds
        due = seconds is not None and time.monotonic() - kept_at >= seconds
        if run.ranks.any(stopped or due):
            keeper.keep()
            kept_at = time.monotonic()
        return stopped

    run.loop.train(increment.until_step, increment=increment.number, after_step=after_step)
    return not stopped


def evaluate(run: Run, stage: EvaluationStage, increment: int) -> None:
    """Held-out perplexity of the model as it stands; after a cut the mixture follows it."""
    run.enter("evaluating", increment)
    result = measure_held_out(run)
    run.record(
        Measurement(
            stage=stage,
            increment=increment,
            suite="perplexity",
            metric="perplexity",
            value=result.value,
            stderr=result.stderr,
            num_samples=result.num_windows,
            protocol=result.protocol,
            rows=encode_rows(result.window_losses),
        )
    )
    record_domain_losses(run, result, stage, increment)
    measure_suites(run, stage, increment)
    if stage == "pruned":
        update_mixture(run, increment, result)


def publish(run: Run, increment: Increment) -> None:
    """Write the increment's checkpoint and announce it."""
    final = increment is run.increments[-1]
    if final and run.recipe.evaluation.speed:
        _measure_speeds(run, increment.number)
    run.enter("exporting", increment.number)
    run.last_increment = increment.number
    run.last_num_parameters = count_parameters(run.model)
    manifest = manifest_of(run, increment, final=final)
    tensors = training_tensors(run.loop.trained_model, run.loop.optimizer, keep=run.ranks.is_first)
    saved = run.ranks.from_first(
        lambda: save_checkpoint(
            run.out_dir,
            manifest,
            model=run.model,
            tokenizer=run.tokenizer,
            tensors=tensors,
            averages=averages(tensors.moments),
            state=run.training_state(),
            derive=lambda directory: derive(run, manifest, directory),
        )
    )
    if run.ranks.is_first:
        discard_partial(run.out_dir, increment.number)
    run.lineage = run.lineage.model_copy(update={"parent_manifest_sha256": saved.manifest_sha256})
    run.emit(_increment_finished(run, saved))


def _measure_speeds(run: Run, last: int) -> None:
    """Of the base model and the final one in turns: hours apart, they would not compare."""
    run.enter("evaluating", last)
    speeds = run.ranks.from_first(lambda: measure_speeds(_served(run)))
    stages: tuple[EvaluationStage, ...] = ("base", "recovered")
    for stage, increment, speed in zip(stages, (0, last), speeds, strict=True):
        for metric, value in speed.metrics.items():
            run.record(
                Measurement(
                    stage=stage,
                    increment=increment,
                    suite="speed",
                    metric=metric,
                    value=value,
                    stderr=speed.stderrs.get(metric),
                    num_samples=speed.num_repeats,
                    protocol=speed.protocol,
                )
            )


def _served(run: Run) -> list[PreTrainedModel]:
    """The base model, opened anew, and the run's as they would be served."""
    dtype = getattr(torch, run.recipe.output.dtype)
    base = open_base(run.recipe, run.lineage, dtype=dtype).to(run.device)
    return [base, as_served(run.model, dtype=dtype)]


def _breaks_quality_floor(run: Run, increment: Increment) -> bool:
    floor = run.recipe.quality_floor
    if floor is None:
        return False
    ratio = run.perplexity("recovered", increment.number) / run.perplexity("base", 0)
    if ratio > floor.max and run.last_increment == 0:
        raise TargetUnreachable(
            f"the first increment already raises perplexity {ratio:.2f}-fold, above the floor",
            param="quality_floor.max",
            hint="Allow more, take smaller increments, or train longer.",
        )
    return ratio > floor.max


def _increment_finished(run: Run, saved: Saved) -> IncrementFinished:
    manifest = saved.manifest
    return IncrementFinished(
        increment=manifest.increment,
        step=manifest.step,
        num_tokens=manifest.num_tokens,
        num_parameters=manifest.num_parameters,
        directory=str(saved.directory.relative_to(run.out_dir)),
        manifest_sha256=saved.manifest_sha256,
        final=manifest.final,
        outcome=manifest.outcome,
    )
