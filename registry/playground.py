"""Prompts put to a checkpoint and to the model it was pruned from; a worker answers with both.

The row is the message: workers look for one, claim it, answer it. What nobody answers in time is
over, and what was answered is forgotten after a day.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from registry import checkpoints
from registry.db import database_now
from registry.errors import NotFound, QuotaExceeded
from registry.ids import new_id
from registry.tables import PlaygroundRun

MAX_PROMPT = 2000
MAX_TOKENS = 128
MAX_PENDING = 4
ANSWER_SECONDS = 180.0
"""How long a prompt may wait and be answered, together."""
_KEPT = timedelta(days=1)
_PENDING = ("queued", "running")
TIMED_OUT = "no worker had an answer in time"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What both models wrote, and how long each took."""

    base_text: str
    pruned_text: str
    base_seconds: float
    pruned_seconds: float


def ask(
    session: Session, tenant_id: str, checkpoint_id: str, *, prompt: str, max_tokens: int
) -> PlaygroundRun:
    """Queue a prompt.

    Raises:
        NotFound: the tenant has no such checkpoint, or its files were not kept.
        QuotaExceeded: as many prompts as may wait do.
    """
    checkpoint = checkpoints.get(session, tenant_id, checkpoint_id)
    if checkpoint.status == "deleted":
        raise NotFound("checkpoint", checkpoint_id)
    now = database_now(session)
    expire(session, now)
    query = select(func.count()).where(
        PlaygroundRun.tenant_id == tenant_id, PlaygroundRun.status.in_(_PENDING)
    )
    if session.execute(query).scalar_one() >= MAX_PENDING:
        message = f"{MAX_PENDING} prompts wait for an answer already"
        raise QuotaExceeded("quota_jobs", message, MAX_PENDING)
    row = PlaygroundRun(
        id=new_id("play"),
        tenant_id=tenant_id,
        job_id=checkpoint.job_id,
        checkpoint_id=checkpoint_id,
        prompt=prompt,
        max_tokens=max_tokens,
        status="queued",
        created_at=now,
    )
    session.add(row)
    session.flush()
    return row


def list_for_job(
    session: Session, tenant_id: str, job_id: str, *, limit: int
) -> Sequence[PlaygroundRun]:
    """The last prompts put to a job's checkpoints, newest first."""
    query = select(PlaygroundRun).where(
        PlaygroundRun.tenant_id == tenant_id, PlaygroundRun.job_id == job_id
    )
    return session.scalars(query.order_by(PlaygroundRun.id.desc()).limit(limit)).all()


def is_overdue(row: PlaygroundRun, now: datetime) -> bool:
    """Whether a prompt is past its time and will not be answered."""
    return row.status in _PENDING and row.created_at < now - timedelta(seconds=ANSWER_SECONDS)


def claim(session: Session, worker_id: str) -> PlaygroundRun | None:
    """The prompt that has waited longest, now this worker's; None when none waits."""
    now = database_now(session)
    query = (
        select(PlaygroundRun)
        .where(
            PlaygroundRun.status == "queued",
            PlaygroundRun.created_at >= now - timedelta(seconds=ANSWER_SECONDS),
        )
        .order_by(PlaygroundRun.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = session.scalars(query).one_or_none()
    if row is not None:
        row.status, row.worker_id, row.started_at = "running", worker_id, now
    return row


def waits(session: Session) -> bool:
    """Whether any prompt waits; for a look that takes no lock."""
    query = select(PlaygroundRun.id).where(PlaygroundRun.status == "queued").limit(1)
    return session.scalars(query).one_or_none() is not None


def answer(session: Session, run_id: str, worker_id: str, found: Answer) -> None:
    """Write what was found; nothing where the prompt is no longer this worker's."""
    _end(session, run_id, worker_id, status="answered", **vars(found))


def fail(session: Session, run_id: str, worker_id: str, error: str) -> None:
    """Write why there is no answer."""
    _end(session, run_id, worker_id, status="failed", error=error)


def _end(session: Session, run_id: str, worker_id: str, **values: object) -> None:
    mine = (
        PlaygroundRun.id == run_id,
        PlaygroundRun.worker_id == worker_id,
        PlaygroundRun.status == "running",
    )
    session.execute(
        update(PlaygroundRun).where(*mine).values(**values, ended_at=database_now(session)),
        execution_options={"synchronize_session": False},
    )


def expire(session: Session, now: datetime) -> None:
    """End what is past its time, and forget what is older than a day."""
    overdue = now - timedelta(seconds=ANSWER_SECONDS)
    session.execute(
        update(PlaygroundRun)
        .where(PlaygroundRun.status.in_(_PENDING), PlaygroundRun.created_at < overdue)
        .values(status="failed", error=TIMED_OUT, ended_at=now),
        execution_options={"synchronize_session": False},
    )
    session.execute(
        delete(PlaygroundRun).where(PlaygroundRun.created_at < now - _KEPT),
        execution_options={"synchronize_session": False},
    )
