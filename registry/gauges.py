"""How the service is doing, in numbers read from the database: true whichever process is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import outbox
from registry.db import database_now
from registry.status import LEASED, JobStatus
from registry.tables import (
    Blob,
    Increment,
    Job,
    JobAttempt,
    OutboxMessage,
    WebhookDelivery,
    Worker,
)

_QUANTILES = (0.5, 0.95, 1.0)
_COUNT = func.count().label("num_rows")


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """One look. Ages are in seconds, 0 where nothing waits.

    `start_waits` is the time from creation to first start of the jobs begun in the last hour, by
    quantile.
    """

    jobs: Mapping[str, int]
    queue_oldest_age: float
    start_waits: Mapping[str, float]
    leases_overdue: int
    tokens_per_second: float
    outbox_unsent: int
    outbox_oldest_age: float
    workers: Mapping[str, int]
    blobs: Mapping[str, int]
    blob_bytes: Mapping[str, int]
    increments: int
    attempts: Mapping[str, int]
    deliveries: Mapping[str, int]


def read(session: Session) -> Gauges:
    """Look at everything at once. Names of tenants and jobs appear nowhere."""
    now = database_now(session)
    blobs = _blobs(session)
    return Gauges(
        jobs=_jobs(session),
        queue_oldest_age=_age(now, _queued_since(session, now)),
        start_waits=_start_waits(session, now),
        leases_overdue=_leases_overdue(session, now),
        tokens_per_second=_tokens_per_second(session),
        outbox_unsent=_outbox_unsent(session, now),
        outbox_oldest_age=_age(now, outbox.waiting_since(session, now)),
        workers=_workers(session, now),
        blobs={status: count for status, (count, _) in blobs.items()},
        blob_bytes={status: size for status, (_, size) in blobs.items()},
        increments=session.execute(select(func.count()).select_from(Increment)).scalar_one(),
        attempts=_attempts(session),
        deliveries=_deliveries(session),
    )


def _age(now: datetime, since: datetime | None) -> float:
    return max((now - since) / timedelta(seconds=1), 0.0) if since is not None else 0.0


def _jobs(session: Session) -> dict[str, int]:
    query = select(Job.status, _COUNT).where(Job.deleted_at.is_(None)).group_by(Job.status)
    found = {row.status: row.num_rows for row in session.execute(query)}
    # A status without a job is a zero, or its line would break off.
    return {status.value: found.get(status, 0) for status in JobStatus}


def _queued_since(session: Session, now: datetime) -> datetime | None:
    query = select(func.min(Job.not_before)).where(
        Job.status == JobStatus.QUEUED, Job.not_before <= now
    )
    return session.execute(query).scalar_one()


def _start_waits(session: Session, now: datetime) -> dict[str, float]:
    query = select(Job.created_at, Job.started_at).where(Job.started_at > now - timedelta(hours=1))
    times = session.execute(query)
    waits = sorted(_age(started, created) for created, started in times if started is not None)
    # 0 where no job was begun: a quantile that is missing would break its line off.
    return {f"{q:g}": waits[ceil(q * len(waits)) - 1] if waits else 0.0 for q in _QUANTILES}


def _leases_overdue(session: Session, now: datetime) -> int:
    query = select(func.count()).where(Job.status.in_(LEASED), Job.lease_until < now)
    return session.execute(query).scalar_one()


def _tokens_per_second(session: Session) -> float:
    query = select(func.sum(Job.tokens_per_second)).where(Job.status.in_(LEASED))
    return session.execute(query).scalar_one() or 0.0


def _outbox_unsent(session: Session, now: datetime) -> int:
    query = select(func.count()).where(
        OutboxMessage.sent_at.is_(None), OutboxMessage.available_at <= now
    )
    return session.execute(query).scalar_one()


def _workers(session: Session, now: datetime) -> dict[str, int]:
    lately = now - timedelta(days=1)
    query = (
        select(Worker.status, _COUNT).where(Worker.heartbeat_at > lately).group_by(Worker.status)
    )
    found = {row.status: row.num_rows for row in session.execute(query)}
    return {s: found.get(s, 0) for s in ("online", "draining", "stopped", "lost")}


def _blobs(session: Session) -> dict[str, tuple[int, int]]:
    query = select(Blob.status, func.count(), func.sum(Blob.size_bytes)).group_by(Blob.status)
    found = {status: (count, int(size)) for status, count, size in session.execute(query)}
    return {status: found.get(status, (0, 0)) for status in ("stored", "deleting")}


def _deliveries(session: Session) -> dict[str, int]:
    query = select(WebhookDelivery.status, _COUNT).group_by(WebhookDelivery.status)
    found = {row.status: row.num_rows for row in session.execute(query)}
    return {status: found.get(status, 0) for status in ("pending", "delivered", "failed")}


def _attempts(session: Session) -> dict[str, int]:
    query = (
        select(JobAttempt.end_cause, func.count())
        .where(JobAttempt.end_cause.is_not(None))
        .group_by(JobAttempt.end_cause)
    )
    return {cause: count for cause, count in session.execute(query) if cause is not None}
