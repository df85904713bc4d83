"""The sweeper: what time alone makes due, however often it looks."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import leases, outbox, workers
from registry.db import database_now
from registry.errors import LeaseLost
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import LocalStore
from registry.sweep import Swept, resume_stored, sweep
from registry.tables import OutboxMessage, Worker
from registry.workers import Identity
from tests.registry.conftest import MakeJob, take

IDENTITY = Identity(id="w", host="h", pid=1, version="1", queues=("default",))


def test_a_second_sweep_finds_nothing(
    session: Session, settings: Settings, make_job: MakeJob
) -> None:
    make_job(JobStatus.RUNNING)
    workers.beat(session, IDENTITY, status="online", current_job_id=None)
    later = database_now(session) + timedelta(hours=1)
    assert sweep(session, settings, later) == Swept(expired=1, lost_workers=1, hinted=1)
    assert sweep(session, settings, later).expired == 0
    assert sweep(session, settings, later).lost_workers == 0


def test_a_lease_that_holds_is_left_alone(
    session: Session, settings: Settings, make_job: MakeJob
) -> None:
    job = make_job(JobStatus.RUNNING)
    assert sweep(session, settings).expired == 0
    assert job.status is JobStatus.RUNNING


def test_a_freshly_started_postgres_gives_everyone_time_to_come_back(
    session: Session, settings: Settings, make_job: MakeJob
) -> None:
    make_job(JobStatus.RUNNING)
    long = settings.model_copy(update={"lease_seconds": 10.0**6})
    later = database_now(session) + timedelta(hours=1)
    is_postgres = session.get_bind().dialect.name == "postgresql"
    assert sweep(session, long, later).expired == (0 if is_postgres else 1)


def test_an_unheard_job_is_hinted_again_ever_more_rarely(
    session: Session, settings: Settings, make_job: MakeJob
) -> None:
    job = make_job()
    start = job.hinted_at
    assert start is not None
    hinted = []
    for second in range(120):
        if sweep(session, settings, start + timedelta(seconds=second)).hinted:
            hinted.append(second)
            job.hinted_at = start + timedelta(seconds=second)
    assert hinted == [6, 17, 38, 79]
    messages = session.scalar(select(func.count()).select_from(OutboxMessage))
    assert messages == 1 + len(hinted)


def test_a_job_that_waits_is_not_hinted(
    session: Session, settings: Settings, make_job: MakeJob
) -> None:
    job = make_job()
    job.not_before = database_now(session) + timedelta(hours=2)
    later = database_now(session) + timedelta(hours=1)
    assert sweep(session, settings, later).hinted == 0


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED])
def test_a_deadline_ends_a_job_and_fences_its_worker(
    session: Session, settings: Settings, make_job: MakeJob, status: JobStatus
) -> None:
    job = make_job(status, max_runtime_seconds=30)
    later = database_now(session) + timedelta(seconds=31)
    assert sweep(session, settings, later).overdue == 1
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "deadline_exceeded"
    assert job.lease_owner is None


def test_the_worker_of_an_overdue_job_stops(
    session: Session, settings: Settings, make_job: MakeJob
) -> None:
    job = make_job(max_runtime_seconds=30)
    lease = take(session, job)
    sweep(session, settings, database_now(session) + timedelta(seconds=31))
    with pytest.raises(LeaseLost):
        leases.renew(session, lease)


def test_a_worker_that_said_goodbye_is_not_lost(session: Session, settings: Settings) -> None:
    workers.beat(session, IDENTITY, status="online", current_job_id=None)
    assert [w.id for w in workers.list_alive(session, 60)] == ["w"]
    workers.beat(session, IDENTITY, status="stopped", current_job_id=None)
    later = database_now(session) + timedelta(hours=1)
    assert sweep(session, settings, later).lost_workers == 0
    session.expire_all()
    assert session.get_one(Worker, "w").status == "stopped"
    assert workers.list_alive(session, 60) == []


def test_what_was_sent_and_answered_long_ago_is_forgotten(
    session: Session, settings: Settings, make_job: MakeJob
) -> None:
    make_job(JobStatus.PAUSED)
    outbox.relay(session, lambda _: None)
    session.flush()
    later = database_now(session) + timedelta(days=2)
    assert sweep(session, settings, later).purged == 1


@pytest.mark.parametrize(("needed", "resumed"), [(0, 2), (1 << 60, 0)])
def test_jobs_that_ran_out_of_space_go_on_when_there_is_some(
    session: Session,
    settings: Settings,
    make_job: MakeJob,
    tmp_path: Path,
    needed: int,
    resumed: int,
) -> None:
    full = [take(session, make_job()) for _ in range(2)]
    for lease in full:
        leases.release(session, lease, cause="storage_full", reason="storage_full", pause=True)
    by_the_user = make_job(JobStatus.PAUSED)
    generous = settings.model_copy(update={"resume_free_bytes": needed})
    assert resume_stored(session, LocalStore(tmp_path), generous) == resumed
    assert by_the_user.status is JobStatus.PAUSED
