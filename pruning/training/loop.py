"""Recovery training: one loop, one optimizer and one schedule that live through every cut.

B sequences of an optimizer step, M of them at a time, T tokens.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.data.mixture import Exhaustion, MixtureSampler
from pruning.errors import NumericsDiverged, OutOfMemory
from pruning.events import Emit, RunWarning, StepFinished
from pruning.memory import give_back_memory
from pruning.models.loss import predictions_inside
from pruning.ranks import Ranks, own_part, whole
from pruning.recipe_parts.recovery import Recovery
from pruning.training.acceleration import accelerated
from pruning.training.averaging import follow
from pruning.training.lora import low_rank
from pruning.training.memory import is_out_of_memory
from pruning.training.objective import batch_loss
from pruning.training.optimizer import build_optimizer
from pruning.training.schedule import Schedule
from pruning.training.sharding import WithLoss, sharded
from pruning.training.snapshot import Snapshot, take_snapshot
from pruning.training.teacher_cache import TeacherCache

T = TypeVar("T")
MAX_ROLLBACKS = 3
_SNAPSHOT_STEPS = 200


@dataclass
class Progress:
    """Where training stands; counted over all increments, stored with every checkpoint."""

    step: int = 0
    num_tokens: int = 0
    learning_rate_scale: float = 1.0
    num_rollbacks: int = 0


@dataclass(kw_only=True)
class TrainingLoop:
    """Trains `model` in place; between two calls of `train` a cut may change its shapes.

    With a `teacher`, the recipe's distillation takes the place of plain cross-entropy. Several
    `ranks` share each batch, whatever their number. A `separator` keeps the documents that it
    closes apart. `data_seconds` is how long training has waited
    for text.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    sampler: MixtureSampler
    recovery: Recovery
    batch_sequences: int
    schedule: Schedule
    progress: Progress
    emit: Emit
    teacher: PreTrainedModel | None = None
    ranks: Ranks = field(default_factory=Ranks)
    separator: int | None = None
    teacher_cache: TeacherCache | None = None
    data_seconds: float = field(default=0.0, init=False)
    _halved_micro_batch: int | None = field(default=None, init=False)
    _trained: WithLoss = field(init=False)

    def __post_init__(self) -> None:
        self._trained = WithLoss(self.model)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.batch_sequences * self.recovery.sequence_length

    @property
    def trained_model(self) -> PreTrainedModel:
        """The model as it stands: while several ranks train, their parts of it."""
        return self._trained.model

    def measure(self, look: Callable[[PreTrainedModel], T]) -> T:
        """What `look` finds of the model as it stands; every rank gets the first one's finding."""
        if self.trained_model is self.model:
            return self.ranks.from_first(lambda: look(self.model))
        found = self._of_model(look)
        return self.ranks.from_first(lambda: found)

    def train(
        self,
        until_step: int,
        *,
        increment: int,
        after_step: Callable[[], bool | None] = lambda: None,
    ) -> None:
        """Train until `until_step` optimizer steps are done in all, or until `after_step` says so.

        A non-finite loss or gradient is noticed before it reaches the weights: training goes back
        to the last good state with half the learning rate.

        Raises:
            NumericsDiverged: it happened a fourth time.
        """
        with ExitStack() as stack:
            if self.recovery.kind == "lora":
                stack.enter_context(low_rank(self.model, self.recovery.lora))
                # The factors are new in every increment, and so is what Adam knows of them.
                self.optimizer = build_optimizer(self.model, self.recovery)
            self._trained = stack.enter_context(sharded(self.model, self.optimizer, self.ranks))
            stack.callback(self.__post_init__)
            stack.enter_context(accelerated(self.trained_model, self.recovery, self.emit))
            self._train(until_step, increment, after_step)

    def _train(
        self, until_step: int, increment: int, after_step: Callable[[], bool | None]
    ) -> None:
        self.trained_model.train()
        good = self._snapshot()
        settling = True
        while self.progress.step < until_step:
            started = time.perf_counter()
            loss, grad_norm = self._gradient()
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                self._roll_back(good, loss=loss, grad_norm=grad_norm)
                continue
            learning_rate = self._update()
            if settling:
                # Adam's moments now lie where activations were, whose holes fit no others.
                give_back_memory(self._device())
                settling = False
            self._report(increment, loss, grad_norm, learning_rate, time.perf_counter() - started)
            if after_step():
                return
            if self.progress.step % _SNAPSHOT_STEPS == 0:
                good = self._snapshot()

    def _gradient(self) -> tuple[float, float]:
        """Mean loss of one batch `ids_BT` and the gradient's norm before clipping."""
        started = time.perf_counter()
        ids_BT, exhausted = self.sampler.next_batch(self.batch_sequences)
        self.data_seconds += time.perf_counter() - started
        for exhaustion in exhausted:
            self.emit(_exhaustion_warning(exhaustion))
        loss = self._accumulate_within_memory(ids_BT)
        parameters = self.trained_model.parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recovery.max_grad_norm)
        return loss, whole(norm).item()

    def _accumulate_within_memory(self, ids_BT: Tensor) -> float:
        """Once in a run, a batch that does not fit is tried again in micro-batches half as large.

        Raises:
            OutOfMemory: that does not fit either.
        """
        try:
            return self._accumulate(ids_BT)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve_micro_batch(str(error))
        # Not in the handler above: its traceback keeps the tensors of the failed attempt.
        self.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._accumulate_within_memory(ids_BT)

    def _accumulate(self, ids_BT: Tensor) -> float:
        num_predictions = max(1, int(predictions_inside(ids_BT, self.separator).sum()))
        device = self._device()
        loss = 0.0
        for ids_MT, weight in self._shares(ids_BT):
            mean = self._loss(ids_MT.to(device)) * (weight / num_predictions)
            mean.backward()  # type: ignore[no-untyped-call]  # torch's own
            loss += mean.item()
        return self.ranks.sum(loss)

    def _device(self) -> torch.device:
        return own_part(next(self.trained_model.parameters())).device

    def _shares(self, ids_BT: Tensor) -> Iterator[tuple[Tensor, float]]:
        """This rank's micro-batches and what each counts.

        Every rank has as many, since each gathers weights from all: some count nothing.
        """
        micro_batch, count = self._micro_batch(), self.ranks.count
        pieces = torch.split(ids_BT[self.ranks.rank :: count], micro_batch)
        largest_share = -(-ids_BT.shape[0] // count)
        for index in range(-(-largest_share // micro_batch)):
            idle = index >= len(pieces) or not len(pieces[index])
            yield (ids_BT[:1], 0.0) if idle else (pieces[index], 1.0)

    def _halve_micro_batch(self, why: str) -> None:
        size = self._micro_batch()
        # Of several ranks one alone cannot change its share: the others would wait for it.
        if self._halved_micro_batch is not None or size == 1 or self.ranks.count > 1:
            raise OutOfMemory(
                f"out of memory at {size} sequences at a time: {why}",
                param="recovery.micro_batch_sequences",
                hint="Try activation checkpointing, a smaller recovery.micro_batch_sequences or "
                "a smaller recovery.sequence_length.",
            )
        self._halved_micro_batch = size // 2
        message = f"out of memory at {size} sequences at a time: going on with {size // 2}"
        self.emit(RunWarning(code="micro_batch_halved", message=message))

    def _loss(self, ids_MT: Tensor) -> Tensor:
        """Summed over the predictions of a micro-batch."""
        return self._of_model(
            lambda model: batch_loss(
                model,
                ids_MT,
                self.recovery,
                teacher=self.teacher,
                cache=self.teacher_cache,
                separator=self.separator,
            )
        )

    def _of_model(self, function: Callable[[PreTrainedModel], T]) -> T:
        return cast(T, self._trained(function))

    def _micro_batch(self) -> int:
        if self._halved_micro_batch is not None:
            return self._halved_micro_batch
        return min(self.batch_sequences, self.recovery.micro_batch(self._device().type))

    def _update(self) -> float:
        learning_rate = self.schedule.at(self.progress.step) * self.progress.learning_rate_scale
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.recovery.average_decay is not None:
            follow(self.optimizer, self.recovery.average_decay)
        self.progress.step += 1
        self.progress.num_tokens += self.tokens_per_step
        return learning_rate

    def _report(
        self,
        increment: int,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        duration_seconds: float,
    ) -> None:
        self.emit(
            StepFinished(
                increment=increment,
                step=self.progress.step,
                num_tokens=self.progress.num_tokens,
                loss=loss,
                learning_rate=learning_rate,
                grad_norm=grad_norm,
                tokens_per_second=self.tokens_per_step / duration_seconds,
                domain_weights=self.sampler.weights,
            )
        )

    def _snapshot(self) -> Snapshot:
        return take_snapshot(
            self.trained_model,
            step=self.progress.step,
            num_tokens=self.progress.num_tokens,
            sampler=self.sampler.state(),
        )

    def _roll_back(self, good: Snapshot, *, loss: float, grad_norm: float) -> None:
        failed_step = self.progress.step + 1
        what = f"loss {loss} with gradient norm {grad_norm} at step {failed_step}"
        if self.progress.num_rollbacks == MAX_ROLLBACKS:
            raise NumericsDiverged(
                f"{what}, after {MAX_ROLLBACKS} rollbacks",
                param="recovery.learning_rate.peak",
                hint="Try a lower learning rate, or precision float32.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        good.restore(self.trained_model)
        self.sampler.load_state(good.sampler)
        self.progress.step = good.step
        self.progress.num_tokens = good.num_tokens
        self.progress.num_rollbacks += 1
        self.progress.learning_rate_scale /= 2
        message = f"{what}: back to step {good.step} with half the learning rate"
        self.emit(RunWarning(code="rolled_back", message=message))


def _exhaustion_warning(exhaustion: Exhaustion) -> RunWarning:
    return RunWarning(
        code="domain_exhausted",
        message=f"domain {exhaustion.domain} is used up; epoch {exhaustion.epoch} of it begins",
    )
