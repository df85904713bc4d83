"""The story of a run."""

import os
import time
from pathlib import Path
from typing import Literal

import torch

from pruning.checkpoint import newest_state
from pruning.data.corpus import Progress
from pruning.data.kept_corpus import open_corpus
from pruning.errors import InvalidRecipe
from pruning.evaluation.asked import asked_of
from pruning.events import (
    Emit,
    Event,
    Outcome,
    PhaseChanged,
    RunFinished,
    RunStopped,
    RunWarning,
    TextRead,
)
from pruning.export.export import check_exportable
from pruning.methods.incremental import evaluate_base, prune_incrementally
from pruning.methods.run import Run, Stop, build_run
from pruning.methods.start import Start, start_from_base, start_from_checkpoint
from pruning.ranks import Ranks, joined
from pruning.recipe import Recipe

Device = Literal["auto", "cpu", "cuda"]
_SECONDS_BETWEEN_WORDS = 10.0


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
    place = _place(recipe, device, threads)
    torch.manual_seed(recipe.seed)
    with joined(place) as ranks:
        report = emit if ranks.is_first else _say_nothing
        state = _open(recipe, out_dir, report, resume_from, stop, place, ranks)
        return _go(state)


def _open(
    recipe: Recipe,
    out_dir: Path,
    emit: Emit,
    resume_from: Path | None,
    stop: Stop,
    device: torch.device,
    ranks: Ranks,
) -> Run:
    emit(PhaseChanged(phase="loading", increment=0))
    start = _start(recipe, resume_from, out_dir)
    check_exportable(start.model.config, recipe)
    emit(PhaseChanged(phase="resolving", increment=start.last_increment))
    corpus = ranks.from_first(
        lambda: open_corpus(
            recipe.data,
            start.tokenizer,
            out_dir / "corpus",
            max_train_tokens=_most_tokens(recipe),
            evaluations=asked_of(recipe),
            progress=_from_time_to_time(emit),
        )
    )
    for message in corpus.warnings:
        emit(RunWarning(code="malformed_rows", message=message))
    for message in corpus.removals:
        emit(RunWarning(code="text_left_out", message=message))
    return build_run(
        recipe, start, corpus, out_dir=out_dir, emit=emit, stop=stop, ranks=ranks, device=device
    )


def _from_time_to_time(emit: Emit) -> Progress:
    said_at = time.monotonic()

    def say(num_documents: int, num_tokens: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _SECONDS_BETWEEN_WORDS:
            said_at = time.monotonic()
            emit(TextRead(num_documents=num_documents, num_tokens=num_tokens))

    return say


def _go(state: Run) -> Outcome | None:
    state.emit(state.started())
    if not state.measurements:
        evaluate_base(state)
    outcome = prune_incrementally(state)
    last, size = state.last_increment, state.last_num_parameters
    if outcome is None:
        state.emit(RunStopped(increment=last))
    else:
        state.emit(RunFinished(outcome=outcome, num_parameters=size, increment=last))
    return outcome


def _say_nothing(_event: Event) -> None:
    """Of several ranks only the first reports."""


def _start(recipe: Recipe, resume_from: Path | None, out_dir: Path) -> Start:
    if resume_from is None:
        return start_from_base(recipe)
    return start_from_checkpoint(newest_state(resume_from, out_dir, recipe))


def _place(recipe: Recipe, device: Device, threads: int | None) -> torch.device:
    """Where this process computes, with its share of the machine's cores.

    Raises:
        InvalidRecipe: the recipe wants more GPUs than there are.
    """
    wanted = recipe.gpus or 0
    found = 0 if device == "cpu" else torch.cuda.device_count()
    if wanted > found:
        raise InvalidRecipe(f"the run wants {wanted} GPUs, this machine has {found}", param="gpus")
    if threads is None and recipe.num_ranks > 1:
        threads = max(1, torch.get_num_threads() // recipe.num_ranks)
    if threads is not None:
        torch.set_num_threads(threads)
    if recipe.processes > 1 or device == "cpu" or (device == "auto" and not found):
        return torch.device("cpu")
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(place)
    return place


def _most_tokens(recipe: Recipe) -> int | None:
    """As much of any one domain as the run can use: None is all of it."""
    num_tokens = 0 if recipe.recovery.kind == "none" else recipe.schedule.num_tokens
    if num_tokens is None:
        return None
    calibration = recipe.calibration_size(num_tokens=num_tokens, num_increments=1)
    # Several times what one increment draws, so that the draws differ.
    return max(num_tokens, 4 * calibration.num_tokens)
