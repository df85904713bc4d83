"""Leases: one holder at a time, and a holder that lost its lease changes nothing."""

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from pruning.events import StepFinished
from registry import commits, leases, progress, sweep
from registry.db import database_now
from registry.errors import LeaseLost
from registry.failures import Backoff, JobError
from registry.leases import Lease
from registry.settings import Settings
from registry.status import LEASED, JobStatus
from registry.tables import Job, JobAttempt
from tests.registry.conftest import MakeJob, take

ERROR = JobError(code="internal", message="broken", retryable=True)
BACKOFF = Backoff(base_seconds=15, limit_seconds=900)
STEP = StepFinished(
    increment=1,
    step=1,
    num_tokens=1,
    loss=1,
    learning_rate=1,
    grad_norm=1,
    tokens_per_second=1,
)
WRITES = {
    "renew": leases.renew,
    "release": lambda s, lease: leases.release(s, lease, cause="slice"),
    "event": lambda s, lease: progress.record_event(s, lease, "warning", {}),
    "phase": lambda s, lease: progress.record_phase(s, lease, "training", 1),
    "steps": lambda s, lease: progress.record_steps(s, lease, [STEP], eta_seconds=None),
    "fail": lambda s, lease: commits.fail(s, lease, ERROR, cause="error", backoff=BACKOFF),
}


def expire(session: Session, settings: Settings, job: Job) -> None:
    """Let the job's lease run out and the sweeper see it."""
    later = database_now(session) + timedelta(hours=1)
    assert sweep.expire_leases(session, settings, later) == 1
    session.refresh(job)


def test_only_one_can_acquire_a_job(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = leases.acquire(session, job.id, "a", 60)
    assert lease is not None
    assert (lease.fence, lease.attempt) == (1, 1)
    assert leases.acquire(session, job.id, "b", 60) is None


def test_a_job_is_not_acquired_before_its_time(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    job.not_before = database_now(session) + timedelta(minutes=1)
    assert leases.acquire(session, job.id, "a", 60) is None


def test_a_job_that_does_not_exist_is_not_acquired(session: Session) -> None:
    assert leases.acquire(session, "job_none", "a", 60) is None


def test_renewing_extends_the_lease_and_shows_the_user_s_wish(
    session: Session, make_job: MakeJob
) -> None:
    job = make_job()
    lease = take(session, job)
    until = job.lease_until
    assert until is not None
    job.status = JobStatus.CANCELLING
    session.flush()
    assert leases.renew(session, lease) is JobStatus.CANCELLING
    session.refresh(job)
    assert job.lease_until is not None
    assert job.lease_until > until


@pytest.mark.parametrize("write", WRITES)
def test_a_zombie_writes_nothing(
    session: Session, settings: Settings, make_job: MakeJob, write: str
) -> None:
    job = make_job()
    zombie = take(session, job, "zombie")
    expire(session, settings, job)
    take(session, job, "successor")
    session.flush()
    seen = (job.version, job.last_event_seq, job.status, job.tokens_seen)
    with pytest.raises(LeaseLost):
        WRITES[write](session, zombie)
    session.refresh(job)
    assert (job.version, job.last_event_seq, job.status, job.tokens_seen) == seen
    assert job.lease_owner == "successor"


def test_an_expired_lease_fences_its_holder_before_anyone_else_comes(
    session: Session, settings: Settings, make_job: MakeJob
) -> None:
    job = make_job()
    zombie = take(session, job)
    expire(session, settings, job)
    assert (job.status, job.fence, job.failures) == (JobStatus.QUEUED, 2, 1)
    attempt = session.get_one(JobAttempt, (job.id, 1))
    assert attempt.end_cause == "lease_expired"
    with pytest.raises(LeaseLost):
        leases.renew(session, zombie)


@pytest.mark.parametrize(
    ("status", "after"),
    [
        (JobStatus.RUNNING, JobStatus.QUEUED),
        (JobStatus.PAUSING, JobStatus.PAUSED),
        (JobStatus.CANCELLING, JobStatus.CANCELLED),
    ],
)
def test_a_lost_holder_leaves_the_job_where_the_user_wanted_it(
    session: Session, settings: Settings, make_job: MakeJob, status: JobStatus, after: JobStatus
) -> None:
    job = make_job(status)
    expire(session, settings, job)
    assert job.status is after


@pytest.mark.parametrize("status", sorted(LEASED))
def test_releasing_follows_the_user_s_wish(
    session: Session, make_job: MakeJob, status: JobStatus
) -> None:
    job = make_job(status)
    lease = _lease_of(job)
    found = leases.release(session, lease, cause="slice")
    assert (
        found
        == {
            JobStatus.RUNNING: JobStatus.QUEUED,
            JobStatus.PAUSING: JobStatus.PAUSED,
            JobStatus.CANCELLING: JobStatus.CANCELLED,
        }[status]
    )


def _lease_of(job: Job) -> Lease:
    assert job.lease_owner is not None
    return Lease(
        job_id=job.id,
        tenant_id=job.tenant_id,
        fence=job.fence,
        owner=job.lease_owner,
        seconds=60,
        attempt=job.attempt,
        increments_done=0,
        head_checkpoint_id=None,
        recipe=job.recipe,
    )


def test_failures_wait_ever_longer() -> None:
    waits = [BACKOFF.after(n, lost=False) for n in range(1, 9)]
    assert waits == [15, 30, 60, 120, 240, 480, 900, 900]
    assert [BACKOFF.after(n, lost=True) for n in (1, 2, 3)] == [0, 15, 30]


@pytest.mark.parametrize("retryable", [True, False])
def test_a_failure_is_tried_again_unless_it_is_fatal(
    session: Session, make_job: MakeJob, retryable: bool
) -> None:
    job = make_job()
    lease = take(session, job)
    error = JobError(code="data_invalid", message="no text", retryable=retryable)
    commits.fail(session, lease, error, cause="error", backoff=BACKOFF, exit_code=75)
    if retryable:
        assert job.status is JobStatus.QUEUED
        assert leases.acquire(session, job.id, "a", 60) is None  # It waits.
    else:
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert job.error["code"] == "data_invalid"


def test_a_job_ends_after_max_attempts_in_a_row(session: Session, make_job: MakeJob) -> None:
    job = make_job(max_attempts=3)
    for expected in (JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED):
        lease = take(session, job)
        none = Backoff(base_seconds=0, limit_seconds=0)
        assert commits.fail(session, lease, ERROR, cause="killed", backoff=none) is expected
