"""The sweeper: what nobody else would notice. Every step may run anywhere, at any time, twice."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, case, func, literal, or_, select, text, update
from sqlalchemy.orm import Session, load_only

from registry import files, idempotency, jobs, outbox
from registry.column_types import UtcDateTime
from registry.db import database_now
from registry.errors import StorageFull
from registry.failures import Backoff, JobError, record_failure
from registry.leases import end_attempt
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import ArtifactStore
from registry.tables import IS_LEASED, IS_QUEUED, CheckpointFile, Job, Worker

STORAGE_FULL = "storage_full"
"""The reason of jobs that were paused because nothing more could be stored."""
BATCH = 100
_MAX_HINTED = 50
_MAX_HINT_SECONDS = 60.0
_OUTBOX_KEPT = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Swept:
    """How much each step found to do."""

    expired: int = 0
    hinted: int = 0
    overdue: int = 0
    lost_workers: int = 0
    purged: int = 0

    def __bool__(self) -> bool:
        return any((self.expired, self.hinted, self.overdue, self.lost_workers, self.purged))


def sweep(session: Session, settings: Settings, now: datetime | None = None) -> Swept:
    """One round over everything that time alone makes due."""
    now = now or database_now(session)
    return Swept(
        expired=expire_leases(session, settings, now),
        overdue=fail_overdue(session, now),
        hinted=hint_queued(session, settings, now),
        lost_workers=_mark_lost_workers(session, settings, now),
        purged=_purge(session, settings, now),
    )


def backoff(settings: Settings) -> Backoff:
    """The operator's patience with failing jobs."""
    return Backoff(
        base_seconds=settings.backoff_seconds, limit_seconds=settings.max_backoff_seconds
    )


def expire_leases(session: Session, settings: Settings, now: datetime) -> int:
    """Take jobs from holders that were not heard of in time; how many.

    The fence grows, so that a holder that wakes up later finds its lease lost.
    """
    if _database_restarted_lately(session, settings, now):
        return 0
    query = (
        select(Job)
        .where(text(IS_LEASED), Job.lease_until < now)
        .order_by(Job.lease_until)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    expired = list(session.scalars(query))
    for job in expired:
        _expire(session, job, settings)
    return len(expired)


def _expire(session: Session, job: Job, settings: Settings) -> None:
    message = f"worker {job.lease_owner} was not heard of for {settings.lease_seconds:g} s"
    end_attempt(session, job, cause="lease_expired", message=message)
    job.fence += 1
    if job.status is JobStatus.CANCELLING:
        jobs.transition(session, job, JobStatus.CANCELLED)
    elif job.status is JobStatus.PAUSING:
        jobs.transition(session, job, JobStatus.PAUSED, reason=message)
    else:
        error = JobError(code="worker_lost", message=message, retryable=True)
        record_failure(
            session, job, error, cause="lease_expired", backoff=backoff(settings), lost=True
        )


def _database_restarted_lately(session: Session, settings: Settings, now: datetime) -> bool:
    # While the server was away nobody could renew: every holder gets one lease time to come back.
    if session.get_bind().dialect.name != "postgresql":
        return False
    started: datetime = session.execute(text("SELECT pg_postmaster_start_time()")).scalar_one()
    return now - started < timedelta(seconds=settings.lease_seconds)


def fail_overdue(session: Session, now: datetime) -> int:
    """End jobs whose deadline passed; a job being cancelled ends as that. How many."""
    query = (
        select(Job)
        .where(
            Job.deadline_at < now,
            Job.finished_at.is_(None),
            Job.status != JobStatus.CANCELLING,
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    overdue = list(session.scalars(query))
    for job in overdue:
        end_attempt(session, job, cause="deadline_exceeded")
        job.fence += 1
        job.error = {
            "code": "deadline_exceeded",
            "message": f"the job did not end within {job.max_runtime_seconds:g} s",
            "retryable": False,
            "attempt": job.attempt,
            "param": "limits.max_runtime_s",
            "hint": "retry continues from the last checkpoint with a fresh deadline",
            "log_tail": None,
        }
        jobs.transition(session, job, JobStatus.FAILED, reason="deadline_exceeded")
    return len(overdue)


def hint_queued(session: Session, settings: Settings, now: datetime) -> int:
    """Hint again at queued jobs that no worker answered to; how many.

    The first of each queue only, and ever more rarely: a long queue must not fill the broker.
    """
    waiting = select(Job.queue).where(text(IS_QUEUED)).distinct()
    return sum(
        _hint_queue(session, settings, now, queue) for queue in session.scalars(waiting).all()
    )


def _hint_queue(session: Session, settings: Settings, now: datetime, queue: str) -> int:
    first = (
        select(Job.id)
        .where(text(IS_QUEUED), Job.queue == queue, Job.not_before <= now, Job.deleted_at.is_(None))
        .order_by(Job.priority.desc(), Job.queued_at)
        .limit(_MAX_HINTED)
    )
    query = (
        select(Job)
        .where(
            Job.id.in_(select(first.subquery())),
            Job.status == JobStatus.QUEUED,
            or_(Job.hinted_at.is_(None), Job.hinted_at < _hinted_before(settings, now)),
        )
        .options(load_only(Job.id, Job.queue, Job.num_hints))
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    unheard = list(session.scalars(query))
    for job in unheard:
        job.hinted_at = outbox.hint(session, job)
        job.num_hints += 1
    return len(unheard)


def _hinted_before(settings: Settings, now: datetime) -> ColumnElement[datetime]:
    """By how often a job was hinted at: when that must have been last to be done again now."""
    latest: dict[int, ColumnElement[datetime]] = {}
    patience = settings.rehint_seconds
    while patience < _MAX_HINT_SECONDS:
        latest[len(latest)] = _ago(now, patience)
        patience *= 2
    if not latest:
        return _ago(now, _MAX_HINT_SECONDS)
    return case(latest, value=Job.num_hints, else_=_ago(now, _MAX_HINT_SECONDS))


def _ago(now: datetime, seconds: float) -> ColumnElement[datetime]:
    return literal(now - timedelta(seconds=seconds), UtcDateTime())


def _mark_lost_workers(session: Session, settings: Settings, now: datetime) -> int:
    since = now - timedelta(seconds=settings.worker_timeout_seconds)
    result = session.execute(
        update(Worker)
        .where(Worker.heartbeat_at < since, Worker.status.in_(("online", "draining")))
        .values(status="lost", current_job_id=None),
        execution_options={"synchronize_session": False},
    )
    return int(result.rowcount)  # type: ignore[attr-defined]  # Result[Any] of a DML is a CursorResult


def resume_stored(session: Session, store: ArtifactStore, settings: Settings) -> int:
    """Queue jobs that paused for want of space and would find it now; how many."""
    query = (
        select(Job)
        .where(Job.status == JobStatus.PAUSED, Job.status_reason == STORAGE_FULL)
        .order_by(Job.priority.desc(), Job.queued_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    resumed = 0
    needed = 0
    for job in session.scalars(query).all():
        # Together: a gap for one job is none for ten.
        needed += max(settings.resume_free_bytes, 2 * _checkpoint_bytes(session, job))
        try:
            store.require_space(needed)
        except StorageFull:
            break
        jobs.resume(session, job)
        resumed += 1
    return resumed


def _checkpoint_bytes(session: Session, job: Job) -> int:
    total = func.coalesce(func.sum(CheckpointFile.size_bytes), 0)
    query = select(total).where(CheckpointFile.checkpoint_id == job.head_checkpoint_id)
    return int(session.execute(query).scalar_one())


def _purge(session: Session, settings: Settings, now: datetime) -> int:
    answered = now - timedelta(hours=settings.idempotency_hours)
    abandoned = files.give_up_abandoned(session, now - timedelta(hours=settings.upload_hours))
    for file_id in abandoned:
        files.part_path(settings.data_dir, file_id).unlink(missing_ok=True)
    purged = idempotency.purge(session, answered) + outbox.purge(session, now - _OUTBOX_KEPT)
    return purged + len(abandoned)
