"""The time left is unknown until it was measured, and right when rates are steady."""

from datetime import UTC, datetime, timedelta

import pytest

from pruning.events import (
    Event,
    IncrementFinished,
    LayerWidths,
    PruneFinished,
    RunStarted,
    StepFinished,
)
from worker.estimate import TimeLeft

START = datetime(2026, 1, 1, tzinfo=UTC)
WIDTHS = (LayerWidths(intermediate_size=8, num_attention_heads=2, num_key_value_heads=1),)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def started(num_increments: int, num_tokens: int) -> RunStarted:
    return RunStarted(
        at=at(0),
        num_parameters=1,
        num_prunable_parameters=1,
        target_num_parameters=1,
        num_increments=num_increments,
        num_tokens=num_tokens,
        num_calibration_samples=1,
        calibration_sequence_length=8,
        first_increment=1,
        model_revision=None,
        model_type="llama",
        data_fingerprint="",
        widths=WIDTHS,
        versions={},
        device="cpu",
    )


def pruned(seconds: float, increment: int) -> PruneFinished:
    return PruneFinished(
        at=at(seconds),
        increment=increment,
        num_tokens=0,
        num_parameters_before=1,
        num_parameters=1,
        widths=WIDTHS,
    )


def step(seconds: float, num_tokens: int) -> StepFinished:
    return StepFinished(
        at=at(seconds),
        increment=1,
        step=1,
        num_tokens=num_tokens,
        loss=1,
        learning_rate=1,
        grad_norm=1,
        tokens_per_second=1,
    )


def finished(seconds: float, increment: int) -> IncrementFinished:
    return IncrementFinished(
        at=at(seconds),
        increment=increment,
        step=1,
        num_tokens=0,
        num_parameters=1,
        directory="",
        manifest_sha256="",
        final=False,
    )


def seconds_after(*events: Event) -> float | None:
    left = TimeLeft()
    for event in events:
        left.observe(event)
    return left.seconds()


def test_nothing_is_known_before_training_was_seen() -> None:
    assert seconds_after(started(3, 300)) is None
    assert seconds_after(started(3, 300), pruned(5, 1)) is None
    assert seconds_after(started(3, 300), pruned(5, 1), step(6, 10)) is None


def test_inside_the_first_increment_its_own_work_stands_for_the_rest() -> None:
    # 10 tokens a second, 80 of 300 seen; cutting took 5 s and comes twice more.
    left = seconds_after(started(3, 300), pruned(5, 1), step(6, 70), step(7, 80))
    assert left == pytest.approx(220 / 10 + 2 * 5)


def test_between_increments_each_costs_its_mean() -> None:
    events = [started(3, 300), pruned(5, 1), step(6, 10), step(15, 100), finished(20, 1)]
    # 90 tokens in 9 s; of 20 s, 11 were other work.
    assert seconds_after(*events) == pytest.approx(200 / 10 + 2 * 11)


def test_at_the_end_nothing_is_left() -> None:
    events = [started(1, 100), pruned(5, 1), step(6, 10), step(15, 100), finished(20, 1)]
    assert seconds_after(*events) == 0


def test_a_run_without_training_goes_by_its_increments() -> None:
    assert seconds_after(started(4, 0), pruned(5, 1), finished(10, 1)) == pytest.approx(30)
