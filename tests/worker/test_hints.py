"""Hints are hints: whatever arrives, the rows decide what is run."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from registry import outbox
from registry.db import SessionFactory, reading, transaction
from registry.outbox import RUN_JOB
from registry.queue import celery_app
from registry.status import JobStatus
from registry.tables import Job, JobAttempt, OutboxMessage
from tests.worker.conftest import Submit
from worker.heartbeat import Presence
from worker.tasks import register
from worker.workplace import Workplace

Hint = Callable[..., None]


@pytest.fixture
def hint(workplace: Workplace) -> Hint:
    """The task of this worker, as a message calls it."""
    app = celery_app(workplace.settings)
    register(app, lambda: workplace, lambda: Presence(workplace))
    task: Hint = app.tasks[RUN_JOB]
    return task


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), {}),
        (({"job_id": "job_1", "fence": 3},), {}),
        (("job_1", 3), {}),
        (("job_1",), {"slice_seconds": 60}),
        ((None,), {}),
    ],
)
def test_a_message_of_another_version_is_ignored_with_a_warning(
    hint: Hint,
    submit: Submit,
    look: Callable[[str], Job],
    caplog: pytest.LogCaptureFixture,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    job_id = submit()
    hint(*arguments, **named)
    assert look(job_id).status is JobStatus.QUEUED
    assert "another version" in caplog.text


def test_hints_in_any_order_again_and_again_and_for_nothing_run_each_job_once(
    hint: Hint, submit: Submit, factory: SessionFactory
) -> None:
    job_ids = [submit(increments=1) for _ in range(3)]
    with transaction(factory) as session:
        outbox.relay(session, lambda _: None)
        messages = [message.key for message in session.scalars(select(OutboxMessage))]
    received = [*messages * 3, "job_that_never_was"]
    random.Random(3).shuffle(received)
    for key in received:
        hint(key)
    with reading(factory) as session:
        found = session.scalars(select(JobAttempt)).all()
        assert sorted(attempt.job_id for attempt in found) == sorted(job_ids)
        assert {attempt.end_cause for attempt in found} == {"finished"}
