import copy
import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pruning.data.corpus import DomainTokens
from pruning.data.mixture import MixtureSampler
from pruning.errors import NumericsDiverged, OutOfMemory
from pruning.events import Event, RunWarning, StepFinished
from pruning.recipe_parts.recovery import LearningRate, Recovery
from pruning.training.loop import Progress, TrainingLoop
from pruning.training.optimizer import build_optimizer, forget_moments
from pruning.training.schedule import Schedule
from tests.pruning.text import make_documents

RECOVERY = Recovery(
    sequence_length=32,
    precision="float32",
    learning_rate=LearningRate(peak=3e-3, warmup_fraction=0),
)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def loop(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, events: list[Event]
) -> TrainingLoop:
    ids = [i for d in tiny_tokenizer(make_documents(30))["input_ids"] for i in d]
    tokens = np.array(ids, dtype=np.uint16)
    domain = DomainTokens(name="text", weight=1.0, train=tokens, held_out=tokens[:0])
    return TrainingLoop(
        model=tiny_llama,
        optimizer=build_optimizer(tiny_llama, RECOVERY),
        sampler=MixtureSampler([domain], sequence_length=32, seed=0),
        recovery=RECOVERY,
        batch_sequences=4,
        schedule=Schedule(learning_rate=RECOVERY.learning_rate, total_steps=1000, last_cut_step=0),
        progress=Progress(),
        emit=events.append,
    )


def poison_after(loop: TrainingLoop, num_batches: int, *, times: int) -> None:
    """Make the output head non-finite in the given number of batches, as an overflow would."""
    norm = loop.model.base_model.norm
    calls = 0

    def overflow(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return output * math.inf if num_batches < calls <= num_batches + times else output

    norm.register_forward_hook(overflow)


def test_loss_falls_on_a_tiny_corpus(loop: TrainingLoop, events: list[Event]) -> None:
    loop.train(40, increment=1)
    losses = [event.loss for event in events if isinstance(event, StepFinished)]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_every_step_is_reported_with_its_tokens_and_rate(
    loop: TrainingLoop, events: list[Event]
) -> None:
    loop.train(3, increment=2)
    steps = [event for event in events if isinstance(event, StepFinished)]
    assert [(e.increment, e.step, e.num_tokens) for e in steps] == [
        (2, 1, 128),
        (2, 2, 256),
        (2, 3, 384),
    ]
    assert all(e.learning_rate == 3e-3 and e.tokens_per_second > 0 for e in steps)


def test_micro_batches_change_nothing_but_memory(loop: TrainingLoop) -> None:
    other = copy.deepcopy(loop.model)
    split = TrainingLoop(
        model=other,
        optimizer=build_optimizer(other, RECOVERY),
        sampler=copy.deepcopy(loop.sampler),
        recovery=RECOVERY.model_copy(update={"micro_batch_sequences": 1}),
        batch_sequences=4,
        schedule=loop.schedule,
        progress=Progress(),
        emit=lambda _: None,
    )
    losses, norms = zip(loop._gradient(), split._gradient(), strict=True)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_non_finite_loss_goes_back_to_the_last_good_state_at_half_the_rate(
    loop: TrainingLoop, events: list[Event]
) -> None:
    loop.train(2, increment=1)
    good = [p.detach().clone() for p in loop.model.parameters()]
    poison_after(loop, 3, times=1)
    restored: list[torch.Tensor] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, RunWarning):
            restored.extend(p.detach().clone() for p in loop.model.parameters())

    loop.emit = watch
    loop.train(6, increment=1)
    assert all(torch.equal(a, b) for a, b in zip(good, restored, strict=True))
    (warning,) = (event for event in events if isinstance(event, RunWarning))
    assert warning.code == "rolled_back"
    steps = [event for event in events if isinstance(event, StepFinished)]
    assert [e.step for e in steps] == [1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert steps[-1].learning_rate == 1.5e-3


def test_a_non_finite_gradient_never_reaches_the_weights(loop: TrainingLoop) -> None:
    poison_after(loop, 1, times=100)
    with pytest.raises(NumericsDiverged, match="after 3 rollbacks"):
        loop.train(5, increment=1)
    assert all(torch.isfinite(p).all() for p in loop.model.parameters())


def test_after_a_rollback_training_sees_the_same_text_again(loop: TrainingLoop) -> None:
    twin_sampler = copy.deepcopy(loop.sampler)
    poison_after(loop, 2, times=1)
    loop.train(5, increment=1)
    twin_sampler.next_batch(5 * 4)
    assert loop.sampler.state() == twin_sampler.state()


def test_norms_and_biases_do_not_decay(tiny_llama: PreTrainedModel) -> None:
    optimizer = build_optimizer(tiny_llama, RECOVERY.model_copy(update={"weight_decay": 0.1}))
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in tiny_llama.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name else 0.1)


def test_an_optimizer_that_forgot_its_moments_steps_as_a_new_one_does(loop: TrainingLoop) -> None:
    loop.train(3, increment=1)
    forget_moments(loop.optimizer)
    new = copy.deepcopy(loop)
    new.optimizer = build_optimizer(new.model, RECOVERY)
    loop.train(4, increment=1)
    new.train(4, increment=1)
    for ours, theirs in zip(loop.model.parameters(), new.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def exhaust_memory(loop: TrainingLoop, *, above_sequences: int) -> None:
    """Fail as the CPU's allocator does on every micro-batch of more sequences than that."""

    def allocate(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > above_sequences:
            # A real failure of a real allocation: 2^62 bytes.
            torch.empty(2**60, dtype=torch.float32)

    loop.model.base_model.embed_tokens.register_forward_pre_hook(allocate)


def test_a_batch_that_does_not_fit_goes_in_halves(loop: TrainingLoop, events: list[Event]) -> None:
    twin = copy.deepcopy(loop)
    twin.emit = lambda _: None
    exhaust_memory(loop, above_sequences=2)
    loop.train(2, increment=1)
    twin.train(2, increment=1)
    (warning,) = (event for event in events if isinstance(event, RunWarning))
    assert warning.code == "micro_batch_halved"
    assert warning.message == "out of memory at 4 sequences at a time: going on with 2"
    for ours, theirs in zip(loop.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_memory_that_is_still_too_small_ends_the_run(loop: TrainingLoop) -> None:
    exhaust_memory(loop, above_sequences=1)
    with pytest.raises(OutOfMemory, match="at 2 sequences at a time"):
        loop.train(1, increment=1)


def test_another_error_is_not_taken_for_a_lack_of_memory(loop: TrainingLoop) -> None:
    def fail(_module: object, _inputs: object) -> None:
        raise RuntimeError("shapes do not fit")

    loop.model.base_model.embed_tokens.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        loop.train(1, increment=1)


def test_a_snapshot_costs_no_more_than_the_weights(loop: TrainingLoop) -> None:
    loop.train(1, increment=1)
    snapshot = loop._snapshot()
    held = sum(weight.numel() for weight in snapshot.weights)
    assert held == sum(p.numel() for p in loop.model.parameters())
