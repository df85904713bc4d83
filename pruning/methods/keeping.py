"""Keeping an increment in progress on this disk: beside its training where memory has room."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from pruning.checkpoint import Tensors, save_partial, training_tensors
from pruning.methods.increments import Increment
from pruning.methods.manifests import manifest_of
from pruning.methods.run import Run
from pruning.training.memory import free_main_memory

_ROOM = 2
"""A copy is made where so many times its size is free: training goes on taking what it needs."""


class Keeper(AbstractContextManager["Keeper"]):
    """Keeps states of one increment, one at a time; leaving the `with` block waits for the last."""

    def __init__(self, run: Run, increment: Increment) -> None:
        self._run, self._increment = run, increment
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        self._writing: Future[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self._finish()

    def keep(self) -> None:
        """Keep the state as it is now, so that a kill costs minutes; all ranks do it together.

        Raises:
            OSError: this state, or the one before it, could not be written.
        """
        self._finish()
        run = self._run
        tensors = training_tensors(
            run.loop.trained_model, run.loop.optimizer, keep=run.ranks.is_first
        )
        if not run.ranks.is_first:
            return
        beside = free_main_memory() >= _ROOM * tensors.num_bytes
        write = self._writer(tensors.copied() if beside else tensors)
        if beside:
            self._writing = self._thread.submit(write)
        else:
            write()

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _writer(self, tensors: Tensors) -> partial[Path]:
        run = self._run
        distillation = run.recipe.recovery.distillation
        from_previous = distillation is not None and distillation.teacher == "previous"
        return partial(
            save_partial,
            run.out_dir,
            manifest_of(run, self._increment, final=False),
            model=run.model,
            tokenizer=run.tokenizer,
            tensors=tensors,
            state=run.training_state(),
            # Frozen, and not replaced before the next cut.
            teacher=run.loop.teacher if from_previous else None,
        )
