"""Messages that leave after the commit that wrote them: at least once, never in its place."""

import logging
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from registry.db import database_now, insert_rows
from registry.ids import new_id
from registry.job_rows import JobRow
from registry.prepared import Reader
from registry.tables import Job, OutboxMessage

RUN_JOB = "espalier.run_job"
BATCH = 50

logger = logging.getLogger(__name__)

Publish = Callable[[OutboxMessage], None]
"""Hands one message to the broker, or raises."""


def hint(
    writer: Reader,
    job: Job | JobRow,
    *,
    available_at: datetime | None = None,
    now: datetime | None = None,
) -> datetime:
    """Queue the message that tells a worker that `job` may be runnable; when it can be sent."""
    now = now or database_now(writer)
    available_at = max(available_at or now, now)
    message = {
        "id": new_id("msg"),
        "topic": RUN_JOB,
        "key": job.id,
        "payload": {"queue": job.queue},
        "available_at": available_at,
        "created_at": now,
    }
    insert_rows(writer, OutboxMessage, [message])
    return available_at


def relay(session: Session, publish: Publish, *, limit: int = BATCH) -> int:
    """Send what is due and mark it sent; how many were.

    A broker that refuses ends the round, and the rest waits for the next. Two relays at once share
    the work on Postgres; at worst a message is sent twice, which a hint may be.
    """
    query = (
        select(OutboxMessage)
        .where(OutboxMessage.sent_at.is_(None), OutboxMessage.available_at <= database_now(session))
        .order_by(OutboxMessage.available_at, OutboxMessage.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    sent = 0
    for message in session.scalars(query):
        message.num_attempts += 1
        try:
            publish(message)
        # Each broker client has its own exceptions; whichever it is, the row stays and is tried
        # again.
        except Exception as error:  # noqa: BLE001
            logger.warning("message %s not sent: %s", message.id, type(error).__name__)
            break
        message.sent_at = database_now(session)
        sent += 1
    return sent


def waiting_since(session: Session, now: datetime) -> datetime | None:
    """When the oldest message that is due and not sent became due; None if all were sent."""
    query = select(func.min(OutboxMessage.available_at)).where(
        OutboxMessage.sent_at.is_(None), OutboxMessage.available_at <= now
    )
    return session.execute(query).scalar_one()


def purge(session: Session, before: datetime) -> int:
    """Delete messages sent before `before`; how many were."""
    result = session.execute(delete(OutboxMessage).where(OutboxMessage.sent_at < before))
    return int(result.rowcount)  # type: ignore[attr-defined]  # Result[Any] of a DML is a CursorResult
