"""The event log of a job: what happened, numbered without a gap."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from registry import webhooks
from registry.db import database_now, insert_rows
from registry.ids import new_id
from registry.job_rows import JobRow
from registry.prepared import Reader
from registry.tables import Job, JobEvent

_NEXT = (
    update(Job)
    .where(Job.id == bindparam("job_id"))
    .values(last_event_seq=Job.last_event_seq + 1)
    .returning(Job.last_event_seq)
    .execution_options(synchronize_session=False)
)


def insert_first(writer: Reader, job: JobRow, first: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """The first events, by type and data, of a job that nobody else can see yet.

    Its `last_event_seq` is their number already.
    """
    rows = [
        {
            "id": new_id("evt"),
            "job_id": job.id,
            "seq": seq,
            "type": event_type,
            "level": "info",
            "data": data,
            "fence": job.fence,
            "created_at": job.created_at,
        }
        for seq, (event_type, data) in enumerate(first, 1)
    ]
    insert_rows(writer, JobEvent, rows)
    webhooks.announce(writer, job, rows)


def append(
    session: Session,
    job: Job,
    event_type: str,
    data: dict[str, Any] | None = None,
    *,
    level: str = "info",
) -> JobEvent:
    """Add the next event of `job`.

    The number comes from the job's row, which stays locked until the transaction ends: numbers
    appear in commit order, and a rollback leaves no hole.
    """
    session.flush()
    seq = session.execute(_NEXT, {"job_id": job.id}).scalar_one()
    set_committed_value(job, "last_event_seq", seq)
    row = JobEvent(
        id=new_id("evt"),
        job_id=job.id,
        seq=seq,
        type=event_type,
        level=level,
        data=data or {},
        fence=job.fence,
        created_at=database_now(session),
    )
    session.add(row)
    webhooks.announce(session, job, [vars(row)])
    return row


def list_after(
    session: Session, job_id: str, after_seq: int = 0, limit: int = 100
) -> list[JobEvent]:
    """Up to `limit` events numbered above `after_seq`, ascending."""
    query = (
        select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.seq > after_seq)
        .order_by(JobEvent.seq)
        .limit(limit)
    )
    return list(session.scalars(query))
