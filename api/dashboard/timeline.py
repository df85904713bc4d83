"""What became of a job over time: statuses, phases and attempts as bars on one clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.figures import Tick
from api.dashboard.units import duration
from api.job_representations import STATUS_EVENTS
from api.representations import read_attempt
from api.schemas.attempts import AttemptRead
from registry import attempts, jobs
from registry.db import database_now
from registry.status import TERMINAL, JobStatus
from registry.tables import Job, JobAttempt, JobEvent

WIDTH = 1000
_LEAST_WIDTH = 1.5
GENTLE = frozenset({"finished", "stopped", "pause", "cancelled", "cancel", "slice", "shutdown"})
"""How an attempt may end that is no crash."""
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400)


@dataclass(frozen=True)
class Bar:
    """A stretch of time; `kind` picks its colour."""

    x: float
    width: float
    kind: str
    label: str


@dataclass(frozen=True)
class AttemptRow:
    """One attempt, in words and as a bar."""

    read: AttemptRead
    seconds: float
    crashed: bool


@dataclass(frozen=True)
class Timeline:
    """Everything on one clock, from creation to the end, or to now."""

    statuses: list[Bar]
    phases: list[Bar]
    attempts: list[Bar]
    crashes: list[float]
    ticks: list[Tick]
    rows: list[AttemptRow]


@dataclass(frozen=True)
class _Clock:
    start: datetime
    end: datetime

    def x(self, at: datetime) -> float:
        span = max((self.end - self.start).total_seconds(), 1.0)
        return round(WIDTH * (at - self.start).total_seconds() / span, 2)

    def bar(self, start: datetime, end: datetime, kind: str, words: str) -> Bar:
        took = duration(max((end - start).total_seconds(), 0.0))
        width = max(self.x(end) - self.x(start), _LEAST_WIDTH)
        return Bar(self.x(start), width, kind, f"{words}, {took}")


def view_timeline(session: Session, tenant_id: str, job_id: str) -> Timeline:
    """The timeline of a job as it is now.

    Raises:
        NotFound: there is none, or it is another tenant's.
    """
    job = jobs.get(session, tenant_id, job_id)
    end = job.finished_at if job.status in TERMINAL else None
    clock = _Clock(job.created_at, end or database_now(session))
    rows = attempts.list_for_job(session, job_id)
    lived = [_row(row, clock) for row in rows]
    return Timeline(
        statuses=_statuses(session, job, clock),
        phases=_phases(session, rows, job, clock),
        attempts=[
            clock.bar(
                row.started_at,
                row.ended_at or clock.end,
                "crashed" if one.crashed else "held",
                f"attempt {row.attempt}: {row.end_cause or 'at work'}",
            )
            for row, one in zip(rows, lived, strict=True)
        ],
        crashes=[
            clock.x(row.ended_at)
            for row, one in zip(rows, lived, strict=True)
            if one.crashed and row.ended_at is not None
        ],
        ticks=_ticks(clock),
        rows=list(reversed(lived)),
    )


def _row(row: JobAttempt, clock: _Clock) -> AttemptRow:
    ended = row.ended_at or clock.end
    return AttemptRow(
        read=read_attempt(row),
        seconds=max((ended - row.started_at).total_seconds(), 0.0),
        crashed=row.end_cause is not None and row.end_cause not in GENTLE,
    )


def _events(session: Session, job: Job, types: Sequence[str]) -> Sequence[JobEvent]:
    query = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.type.in_(types))
    return session.scalars(query.order_by(JobEvent.seq)).all()


def _statuses(session: Session, job: Job, clock: _Clock) -> list[Bar]:
    changes = _events(session, job, sorted(STATUS_EVENTS))
    ends = [event.created_at for event in changes[1:]] + [clock.end]
    return [
        clock.bar(event.created_at, end, str(event.data["status"]), str(event.data["status"]))
        for event, end in zip(changes, ends, strict=False)
        if JobStatus(event.data["status"]) not in TERMINAL
    ]


def _phases(session: Session, rows: Sequence[JobAttempt], job: Job, clock: _Clock) -> list[Bar]:
    """A phase lasts until the next one, or until its attempt ends."""
    changes = _events(session, job, ["phase.changed"])
    ends = {row.fence: row.ended_at or clock.end for row in rows}
    bars = []
    for event, following in zip(changes, [*changes[1:], None], strict=False):
        end = ends.get(event.fence, clock.end)
        if following is not None:
            end = min(following.created_at, end) if event.fence == following.fence else end
        phase = str(event.data.get("phase", ""))
        increment = event.data.get("increment")
        words = f"{phase}, cut {increment}" if increment else phase
        bars.append(clock.bar(event.created_at, max(end, event.created_at), phase, words))
    return bars


def _ticks(clock: _Clock) -> list[Tick]:
    span = max((clock.end - clock.start).total_seconds(), 1.0)
    step = next((s for s in _STEPS if span / s <= 6), max(int(span / 6), 1))
    return [
        Tick(clock.x(clock.start + timedelta(seconds=at)), duration(at))
        for at in range(0, int(span) + 1, step)
    ]
