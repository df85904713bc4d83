"""Curves: replayed steps replace the lost ones, and thinning keeps the look."""

import math

import pytest
from sqlalchemy.orm import Session

from registry import metrics
from tests.registry.conftest import MakeJob


def columns(steps: range, loss: float) -> metrics.Columns:
    return {"step": list(steps), "loss": [loss] * len(steps)}


def test_the_latest_lease_wins(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    metrics.append(session, job.id, 1, columns(range(1, 5), 1.0))
    metrics.append(session, job.id, 1, columns(range(5, 9), 1.0))
    metrics.append(session, job.id, 2, columns(range(3, 6), 2.0))
    found = metrics.columns(session, job.id, ("loss",))
    assert found == {"step": [1, 2, 3, 4, 5], "loss": [1.0, 1.0, 2.0, 2.0, 2.0]}


def test_a_batch_sent_twice_counts_once(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    for _ in range(2):
        metrics.append(session, job.id, 1, columns(range(1, 3), 1.0))
    assert metrics.columns(session, job.id, ("loss",))["step"] == [1, 2]


def test_reading_can_begin_in_the_middle(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    metrics.append(session, job.id, 1, columns(range(1, 10), 1.0))
    assert metrics.columns(session, job.id, ("loss",), from_step=8)["step"] == [8, 9]


def test_thinning_keeps_the_ends_and_the_spikes(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    losses = [math.exp(-step / 500) for step in range(2000)]
    losses[1234] = 9.0
    metrics.append(session, job.id, 1, {"step": list(range(2000)), "loss": losses})
    found = metrics.columns(session, job.id, ("num_tokens", "loss"), max_points=100)
    assert len(found["step"]) == len(found["loss"]) == 100
    assert {0, 1234, 1999} <= set(found["step"])
    assert found["step"] == sorted(set(found["step"]))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6])
def test_thinning_gives_as_many_points_as_asked_for(count: int) -> None:
    assert len(metrics.thin([0, 1, 2, 3, 4], [0, 1, 0, 1, 0], count)) == min(count, 5)
