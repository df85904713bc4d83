"""The training loop of a run, set up as its recipe says."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from pruning.checkpoint import restore_optimizer
from pruning.data.corpus import Corpus
from pruning.data.mixture import MixtureSampler
from pruning.events import Emit, RunWarning
from pruning.manifest import Lineage
from pruning.methods.increments import Increment
from pruning.methods.start import Start, open_base
from pruning.models.distillation import freeze
from pruning.models.loss import product_dtype
from pruning.ranks import Ranks
from pruning.recipe import Recipe
from pruning.training.loop import Progress, TrainingLoop
from pruning.training.optimizer import build_optimizer
from pruning.training.schedule import Schedule
from pruning.training.teacher_cache import TeacherCache

_MIN_STEPS = 50
_MAX_AUTOMATIC_BATCH = 8
_CACHE = "teacher_cache"


def total_steps(recipe: Recipe, corpus: Corpus) -> int:
    """Optimizer steps over the run's tokens."""
    if recipe.recovery.kind == "none":
        return 0
    num_sequences = _num_sequences(recipe, corpus)
    return max(1, num_sequences // batch_sequences(recipe, corpus)) if num_sequences else 0


def batch_sequences(recipe: Recipe, corpus: Corpus) -> int:
    """Sequences per optimizer step: as asked, else 8, or fewer where that leaves too few steps.

    In a short run the number of steps limits recovery, not the noise of their gradients.
    """
    if recipe.recovery.batch_sequences is not None:
        return recipe.recovery.batch_sequences
    affordable = _num_sequences(recipe, corpus) // _MIN_STEPS
    return max(1, min(_MAX_AUTOMATIC_BATCH, affordable))


def _num_sequences(recipe: Recipe, corpus: Corpus) -> int:
    """Training sequences of the run; by default one pass over the corpus."""
    length = recipe.recovery.sequence_length
    if recipe.schedule.num_tokens is not None:
        return recipe.schedule.num_tokens // length
    return sum(len(domain.train) // length for domain in corpus.domains)


def build_loop(
    recipe: Recipe,
    start: Start,
    corpus: Corpus,
    increments: tuple[Increment, ...],
    emit: Emit,
    ranks: Ranks,
    device: torch.device,
    directory: Path,
) -> TrainingLoop:
    """Put model, optimizer, sampler and schedule where `start` is; caches go below `directory`.

    Raises:
        InvalidData: no domain holds a sequence, or the corpus is not the checkpoint's.
        InvalidRecipe: the disk has no room for what the teacher predicts.
    """
    sampler = MixtureSampler(
        corpus.domains, sequence_length=recipe.recovery.sequence_length, seed=recipe.seed
    )
    optimizer = build_optimizer(start.model, recipe.recovery)
    if start.optimizer_tensors is not None:
        sampler.load_state(start.state["sampler"])
        restore_optimizer(optimizer, start.model, start.optimizer_tensors)
    return TrainingLoop(
        model=start.model,
        optimizer=optimizer,
        sampler=sampler,
        recovery=recipe.recovery,
        batch_sequences=batch_sequences(recipe, corpus),
        schedule=Schedule(
            learning_rate=recipe.recovery.learning_rate,
            total_steps=increments[-1].until_step,
            last_cut_step=increments[-1].pruning_until_step,
        ),
        progress=Progress(**start.state.get("progress", {})),
        emit=emit,
        teacher=_teacher(recipe, start, device),
        ranks=ranks,
        separator=_separator(recipe, start),
        teacher_cache=_teacher_cache(recipe, start, sampler, emit, ranks, directory),
    )


def _separator(recipe: Recipe, start: Start) -> int | None:
    """The token that closes a document, where training is to keep documents apart."""
    return start.tokenizer.eos_token_id if recipe.recovery.separate_documents else None


def _teacher(recipe: Recipe, start: Start, device: torch.device) -> PreTrainedModel | None:
    """The model to distil from until the next cut."""
    teacher = start.teacher or _base_teacher(recipe, start.lineage)
    return teacher.to(device) if teacher is not None else None


def _base_teacher(recipe: Recipe, lineage: Lineage) -> PreTrainedModel | None:
    """The base model to distil from, opened anew: the run's own copy of it is about to be cut."""
    distillation = recipe.recovery.distillation
    if distillation is None or distillation.teacher != "base" or recipe.recovery.kind == "none":
        return None
    dtype = product_dtype(recipe.recovery.precision)
    return freeze(open_base(recipe, lineage, dtype=dtype), dtype)


def _teacher_cache(
    recipe: Recipe, start: Start, sampler: MixtureSampler, emit: Emit, ranks: Ranks, directory: Path
) -> TeacherCache | None:
    """Room for every sequence that this rank may train on."""
    distillation, recovery = recipe.recovery.distillation, recipe.recovery
    if distillation is None or distillation.teacher_cache is None or recovery.kind == "none":
        return None
    wanted = recipe.schedule.num_tokens
    if wanted is None or wanted // recovery.sequence_length <= sampler.num_windows:
        message = "the text is seen once: what the teacher predicts is kept, and not read again"
        emit(RunWarning(code="teacher_cache_unused", message=message))
    return TeacherCache(
        directory / _CACHE / f"{ranks.rank:02d}",
        num_sequences=sampler.num_windows,
        num_predictions=recovery.sequence_length - 1,
        top_k=distillation.teacher_cache.top_k,
        vocab_size=start.model.config.vocab_size,
    )
