"""Whose turn it is: by priority, then to the tenant that runs the fewest, then who waits longest.

A queue is a kind of machine, from what the recipe says it needs; a worker serves one or more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, exists, func, select, text, tuple_, update
from sqlalchemy.orm import Session

from pruning.recipe import Recipe
from registry import quotas
from registry.db import database_now
from registry.tables import IS_LEASED, IS_QUEUED, Job

DEFAULT_QUEUE = "default"


def queue_for(recipe: Recipe) -> str:
    """The queue of the machines that can run a recipe.

    `default` is for any machine, `cpu` for runs spread over processes, `gpu` and `gpus:n` for those
    with as many GPUs.
    """
    if recipe.gpus is None:
        return "cpu" if recipe.processes > 1 else DEFAULT_QUEUE
    return "gpu" if recipe.gpus == 1 else f"gpus:{recipe.gpus}"


def queues_of(num_gpus: int) -> tuple[str, ...]:
    """The queues that a machine with so many GPUs can serve."""
    several = tuple(f"gpus:{number}" for number in range(2, num_gpus + 1))
    return (DEFAULT_QUEUE, "cpu", *(("gpu",) if num_gpus else ()), *several)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The jobs of one tenant that wait with one priority."""

    priority: int
    tenant_id: str
    oldest: datetime


def in_turn(session: Session, queues: Sequence[str]) -> Iterator[str]:
    """Ids of due jobs of these queues, locked, one for each tenant and priority, the next first."""
    now = database_now(session)
    held = _held(session)
    groups = _waiting(session, queues, now)
    for group in sorted(groups, key=lambda g: (-g.priority, held.get(g.tenant_id, 0), g.oldest)):
        query = (
            select(Job.id)
            .where(
                *_due(queues, now),
                Job.tenant_id == group.tenant_id,
                Job.priority == group.priority,
            )
            .order_by(Job.queued_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        job_id = session.execute(query).scalar_one_or_none()
        if job_id is not None:
            yield job_id


def is_outranked(session: Session, job_id: str, queues: Sequence[str]) -> bool:
    """Whether a running job shall make room at its next boundary.

    So it is when one of higher priority waits for these queues that was hinted at in vain, so that
    no worker is free for it; that could run, as far as its tenant's quota goes; and when no other
    running job ranks lower, so that a single one makes room.
    """
    job = session.execute(select(Job.priority, Job.tenant_id).where(Job.id == job_id)).one_or_none()
    if job is None or _others_rank_lower(session, job_id, job.priority, queues):
        return False
    for group in _waiting(session, queues, database_now(session), Job.num_hints > 0):
        leaves = 1 if group.tenant_id == job.tenant_id else 0
        if group.priority > job.priority and quotas.has_room(session, group.tenant_id, leaves):
            return True
    return False


def room_was_made(session: Session, priority: int) -> None:
    """A job of this priority gave way, so that nothing of a higher one was hinted at in vain since.

    Until the worker that is free now has had its time, no second job makes room for the same one.
    """
    waiting = (
        select(Job.id)
        .where(text(IS_QUEUED), Job.priority > priority, Job.num_hints > 0)
        .with_for_update(skip_locked=True)
    )
    session.execute(
        update(Job).where(Job.id.in_(waiting)).values(num_hints=0),
        execution_options={"synchronize_session": "fetch"},
    )


def _others_rank_lower(session: Session, job_id: str, priority: int, queues: Sequence[str]) -> bool:
    lower = tuple_(Job.priority, Job.id) < tuple_(priority, job_id)
    query = select(exists().where(text(IS_LEASED), Job.queue.in_(queues), lower))
    return bool(session.execute(query).scalar_one())


def _due(queues: Sequence[str], now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        text(IS_QUEUED),  # type: ignore[return-value]  # A condition in words.
        Job.queue.in_(queues),
        Job.not_before <= now,
        Job.deleted_at.is_(None),
    )


def _waiting(
    session: Session, queues: Sequence[str], now: datetime, *narrower: ColumnElement[bool]
) -> list[_Group]:
    query = (
        select(Job.priority, Job.tenant_id, func.min(Job.queued_at))
        .where(*_due(queues, now), *narrower)
        .group_by(Job.priority, Job.tenant_id)
    )
    rows = session.execute(query)
    return [_Group(priority=p, tenant_id=t, oldest=oldest) for p, t, oldest in rows]


def _held(session: Session) -> dict[str, int]:
    query = select(Job.tenant_id, func.count()).where(text(IS_LEASED)).group_by(Job.tenant_id)
    return {tenant_id: count for tenant_id, count in session.execute(query)}  # noqa: C416  # Rows are no pairs to mypy.
