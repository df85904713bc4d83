"""The story of a run."""

from pathlib import Path
from typing import Literal

import torch

from pruning.checkpoint import newest_state
from pruning.data.corpus import build_corpus
from pruning.events import Emit, Outcome, PhaseChanged, RunFinished, RunStopped, RunWarning
from pruning.export.export import check_exportable
from pruning.methods.incremental import evaluate_base, prune_incrementally
from pruning.methods.run import Start, Stop, build_run, start_from_base, start_from_checkpoint
from pruning.recipe import Recipe

Device = Literal["auto", "cpu", "cuda"]


def run(
    recipe: Recipe,
    out_dir: Path,
    emit: Emit,
    *,
    resume_from: Path | None = None,
    stop: Stop = lambda: False,
    device: Device = "auto",
    threads: int | None = None,
) -> Outcome | None:
    """Prune and train as the recipe says, leaving a checkpoint in `out_dir` after each increment.

    None means `stop()` came first: the run goes on with `resume_from` the last checkpoint. What
    `out_dir` keeps of the increment after that one, if a kill left any, is not done again.

    Raises:
        PruningError: of the kind that says what was wrong.
    """
    place = _place(device, threads)
    torch.manual_seed(recipe.seed)
    emit(PhaseChanged(phase="loading", increment=0))
    start = _start(recipe, resume_from, out_dir)
    check_exportable(start.model.config, recipe)
    emit(PhaseChanged(phase="resolving", increment=start.last_increment))
    corpus = build_corpus(
        recipe.data, start.tokenizer, out_dir / "corpus", max_train_tokens=_most_tokens(recipe)
    )
    for message in corpus.warnings:
        emit(RunWarning(code="malformed_rows", message=message))
    state = build_run(recipe, start, corpus, out_dir=out_dir, emit=emit, stop=stop, device=place)
    emit(state.started())
    if not start.measurements:
        evaluate_base(state)
    outcome = prune_incrementally(state)
    last = state.last_increment
    if outcome is None:
        emit(RunStopped(increment=last))
    else:
        emit(RunFinished(outcome=outcome, num_parameters=state.last_num_parameters, increment=last))
    return outcome


def _start(recipe: Recipe, resume_from: Path | None, out_dir: Path) -> Start:
    if resume_from is None:
        return start_from_base(recipe)
    return start_from_checkpoint(newest_state(resume_from, out_dir, recipe))


def _place(device: Device, threads: int | None) -> torch.device:
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _most_tokens(recipe: Recipe) -> int | None:
    """As much of any one domain as the run can use: None is all of it."""
    calibration = recipe.importance.calibration
    # Several times what one increment draws, so that the draws differ.
    to_calibrate = 4 * calibration.num_samples * calibration.sequence_length
    if recipe.recovery.kind == "none":
        return to_calibrate
    if recipe.schedule.num_tokens is None:
        return None
    return max(recipe.schedule.num_tokens, to_calibrate)
