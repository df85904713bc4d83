"""Leases: who may work on a job, until when, and by which fence.

`fence` grows with every lease granted and every lease taken away. Whoever writes for a job names
the fence of its lease in the `WHERE` (`guard`, `renew`); when that matches no row, the lease is
lost and the holder stops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from registry import jobs, quotas, scheduling
from registry.db import database_now
from registry.errors import LeaseLost, NotFound
from registry.status import LEASED, JobStatus
from registry.tables import Job, JobAttempt

PREEMPTED = "preempted"
"""The cause of a release that makes room for a job of higher priority."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to work on a job, and where its last holder left it."""

    job_id: str
    tenant_id: str
    fence: int
    owner: str
    seconds: float
    attempt: int
    increments_done: int
    head_checkpoint_id: str | None
    recipe: Mapping[str, Any] = field(repr=False)


def acquire(session: Session, job_id: str, owner: str, lease_seconds: float) -> Lease | None:
    """The lease of a job that is queued and due; None if another has it, nothing is to do, or the
    tenant has as many running as it may."""
    try:
        job = jobs.lock(session, job_id)
    except NotFound:
        return None
    now = database_now(session)
    if job.status is not JobStatus.QUEUED or job.not_before > now or job.deleted_at is not None:
        return None
    if not quotas.may_run(session, job.tenant_id):
        return None
    job.fence += 1
    job.attempt += 1
    job.lease_owner = owner
    job.lease_until = now + timedelta(seconds=lease_seconds)
    job.started_at = job.started_at or now
    jobs.transition(session, job, JobStatus.RUNNING, data={"worker": owner})
    session.add(
        JobAttempt(
            job_id=job.id, fence=job.fence, attempt=job.attempt, worker_id=owner, started_at=now
        )
    )
    return Lease(
        job_id=job.id,
        tenant_id=job.tenant_id,
        fence=job.fence,
        owner=owner,
        seconds=lease_seconds,
        attempt=job.attempt,
        increments_done=job.increments_done,
        head_checkpoint_id=job.head_checkpoint_id,
        recipe=job.recipe,
    )


def acquire_next(
    session: Session, queues: Sequence[str], owner: str, lease_seconds: float
) -> Lease | None:
    """The lease of the job whose turn it is in these queues; None if none can be had."""
    for job_id in scheduling.in_turn(session, queues):
        lease = acquire(session, job_id, owner, lease_seconds)
        if lease is not None:
            return lease
    return None


def renew(session: Session, lease: Lease) -> JobStatus:
    """Extend the lease; the status says whether the user wants the job paused or cancelled.

    Raises:
        LeaseLost: it is not this lease's job any more.
    """
    until = database_now(session) + timedelta(seconds=lease.seconds)
    status = session.execute(
        update(Job)
        .where(Job.id == lease.job_id, Job.fence == lease.fence, Job.status.in_(LEASED))
        .values(lease_until=until)
        .returning(Job.status),
        execution_options={"synchronize_session": False},
    ).scalar_one_or_none()
    if status is None:
        raise _lost(lease)
    return JobStatus(status)


def guard(session: Session, lease: Lease) -> Job:
    """The job, locked, if the lease still holds: every write of a worker begins here.

    Raises:
        LeaseLost: it is not this lease's job any more.
    """
    query = (
        select(Job)
        .where(Job.id == lease.job_id, Job.fence == lease.fence, Job.status.in_(LEASED))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    job = session.scalars(query).one_or_none()
    if job is None:
        raise _lost(lease)
    return job


def release(
    session: Session, lease: Lease, *, cause: str, reason: str | None = None, pause: bool = False
) -> JobStatus:
    """Give the job back unharmed: queued again, or paused or cancelled if that was asked for.

    `pause` parks a running job, for the reason given, until someone resumes it.

    Raises:
        LeaseLost: it is not this lease's job any more.
    """
    job = guard(session, lease)
    end_attempt(session, job, cause=cause)
    if job.status is JobStatus.CANCELLING:
        jobs.transition(session, job, JobStatus.CANCELLED)
    elif job.status is JobStatus.PAUSING or pause:
        data = {"increments_done": job.increments_done}
        jobs.transition(session, job, JobStatus.PAUSED, reason=reason, data=data)
    else:
        jobs.requeue(session, job, reason=reason, data={"cause": cause})
    if cause == PREEMPTED:
        scheduling.room_was_made(session, job.priority)
    return job.status


def end_attempt(
    session: Session,
    job: Job,
    *,
    cause: str,
    exit_code: int | None = None,
    message: str | None = None,
    log_tail: str | None = None,
) -> None:
    """Record how the attempt that holds, or held, the lease ended."""
    row = session.get(JobAttempt, (job.id, job.fence))
    if row is not None and row.ended_at is None:
        row.ended_at = database_now(session)
        row.end_cause = cause
        row.exit_code = exit_code
        row.message = message
        row.log_tail = log_tail


def held_seconds(session: Session, job_id: str) -> float:
    """How long workers have held a job, over all its attempts that have ended."""
    query = select(JobAttempt.started_at, JobAttempt.ended_at).where(
        JobAttempt.job_id == job_id, JobAttempt.ended_at.is_not(None)
    )
    spans = [ended - started for started, ended in session.execute(query) if ended is not None]
    return sum(span.total_seconds() for span in spans)


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"lease {lease.fence} of {lease.job_id} is over")
