"""Who is alive: workers write their heartbeat, anyone may read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from registry.db import database_now, insert_unless_exists
from registry.tables import Worker

WorkerStatus = Literal["online", "draining", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a worker process says of itself."""

    id: str
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]


def beat(
    session: Session,
    identity: Identity,
    *,
    status: WorkerStatus,
    current_job_id: str | None,
    utilisation: float | None = None,
) -> None:
    """Write the worker's heartbeat; the first one is its registration.

    `utilisation`: how busy its devices are, from 0 to 1.
    """
    now = database_now(session)
    values: dict[str, Any] = {
        "host": identity.host,
        "pid": identity.pid,
        "version": identity.version,
        "queues": list(identity.queues),
        "status": status,
        "current_job_id": current_job_id,
        "utilisation": utilisation,
        "heartbeat_at": now,
    }
    fresh = {"id": identity.id, "started_at": now, **values}
    if not insert_unless_exists(session, Worker, fresh):
        session.execute(
            update(Worker).where(Worker.id == identity.id).values(**values),
            execution_options={"synchronize_session": False},
        )


def list_alive(session: Session, timeout_seconds: float) -> Sequence[Worker]:
    """Workers heard of within the last `timeout_seconds` that did not say goodbye."""
    since = database_now(session) - timedelta(seconds=timeout_seconds)
    query = (
        select(Worker)
        .where(Worker.heartbeat_at >= since, Worker.status.in_(("online", "draining")))
        .order_by(Worker.id)
    )
    return session.scalars(query).all()
