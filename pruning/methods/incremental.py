"""Adapt-Pruner's loop (arXiv 2502.03460): small cuts, each followed by training, to the target."""

import time
from datetime import UTC, datetime

import torch

from pruning.checkpoint import (
    Saved,
    Tensors,
    discard_partial,
    save_checkpoint,
    save_partial,
    training_tensors,
)
from pruning.errors import TargetUnreachable
from pruning.evaluation.speed import measure_speed
from pruning.events import (
    EvaluationStage,
    IncrementFinished,
    Outcome,
    Phase,
    PhaseChanged,
)
from pruning.manifest import Manifest, Measurement
from pruning.methods.cutting import cut
from pruning.methods.exporting import derive
from pruning.methods.increments import Increment
from pruning.methods.mixing import measure_held_out, record_domain_losses, update_mixture
from pruning.methods.run import Run
from pruning.methods.suites import measure_others, measure_suites
from pruning.models.geometry import count_parameters, layer_widths
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
    if run.recipe.evaluation.speed:
        _measure_speed(run, "base", 0)


def recover(run: Run, increment: Increment) -> bool:
    """Train up to the step where the increment ends; False if it was asked to stop before.

    The state is kept from time to time, and when it stops.
    """
    _enter(run, "training", increment.number)
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
            keep_partial(run, increment)
            kept_at = time.monotonic()
        return stopped

    run.loop.train(increment.until_step, increment=increment.number, after_step=after_step)
    return not stopped


def keep_partial(run: Run, increment: Increment) -> None:
    """Keep the increment in progress on this disk, so that a kill costs minutes."""
    distillation = run.recipe.recovery.distillation
    from_previous = distillation is not None and distillation.teacher == "previous"
    tensors = _tensors(run)
    run.ranks.from_first(
        lambda: save_partial(
            run.out_dir,
            _manifest(run, increment, final=False),
            model=run.model,
            tokenizer=run.tokenizer,
            tensors=tensors,
            state=run.training_state(),
            teacher=run.loop.teacher if from_previous else None,
        )
    )


def _tensors(run: Run) -> Tensors:
    return training_tensors(run.loop.trained_model, run.loop.optimizer, keep=run.ranks.is_first)


def evaluate(run: Run, stage: EvaluationStage, increment: int) -> None:
    """Held-out perplexity of the model as it stands; after a cut the mixture follows it."""
    _enter(run, "evaluating", increment)
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
        _measure_speed(run, "recovered", increment.number)
    _enter(run, "exporting", increment.number)
    run.last_increment = increment.number
    run.last_num_parameters = count_parameters(run.model)
    manifest = _manifest(run, increment, final=final)
    tensors = _tensors(run)
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


def _measure_speed(run: Run, stage: EvaluationStage, increment: int) -> None:
    _enter(run, "evaluating", increment)
    dtype = getattr(torch, run.recipe.output.dtype)
    speed = run.ranks.from_first(lambda: measure_speed(run.model, dtype=dtype))
    for metric, value in speed.metrics.items():
        run.record(
            Measurement(
                stage=stage,
                increment=increment,
                suite="speed",
                metric=metric,
                value=value,
                num_samples=speed.num_repeats,
                protocol=speed.protocol,
            )
        )


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


def _manifest(run: Run, increment: Increment, *, final: bool) -> Manifest:
    return Manifest(
        increment=increment.number,
        step=run.loop.progress.step,
        num_tokens=run.num_tokens,
        num_parameters=count_parameters(run.model),
        base_num_parameters=run.base_num_parameters,
        target_num_parameters=run.target_num_parameters,
        num_bytes=0,
        dtype=run.recipe.output.dtype,
        final=final,
        outcome="target_reached" if final else None,
        widths=layer_widths(run.model),
        measurements=tuple(run.measurements),
        lineage=run.lineage,
        data_fingerprint=run.corpus.fingerprint,
        recipe=run.recipe,
        plan=run.plan,
        versions=run.versions,
        created_at=datetime.now(UTC),
        files={},
    )


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


def _enter(run: Run, phase: Phase, increment: int) -> None:
    run.emit(PhaseChanged(phase=phase, increment=increment))
