"""What a tenant has used over a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry.tables import Job, JobAttempt


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Jobs created in a time, by the status they are in now, and what they took."""

    jobs: Mapping[str, int]
    tokens: int
    worker_seconds: float


def measure(session: Session, tenant_id: str, *, since: datetime, until: datetime) -> Usage:
    """The usage of jobs created in `[since, until)`."""
    within = (Job.tenant_id == tenant_id, Job.created_at >= since, Job.created_at < until)
    counts = select(Job.status, func.count(), func.coalesce(func.sum(Job.tokens_seen), 0))
    rows = session.execute(counts.where(*within).group_by(Job.status)).all()
    attempts = (
        select(JobAttempt.started_at, JobAttempt.ended_at)
        .join(Job, Job.id == JobAttempt.job_id)
        .where(*within, JobAttempt.ended_at.is_not(None))
    )
    spans = [ended - started for started, ended in session.execute(attempts) if ended is not None]
    return Usage(
        jobs={status.value: count for status, count, _ in rows},
        tokens=int(sum(tokens for _, _, tokens in rows)),
        worker_seconds=sum(span.total_seconds() for span in spans),
    )
