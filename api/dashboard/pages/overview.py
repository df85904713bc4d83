"""The first page: what runs, what waits, who works, what happened last."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.dashboard.viewing import Viewer, show
from api.deps import Principal, ReadSession, SettingsDep
from api.job_representations import read_jobs
from api.representations import read_event
from api.schemas.jobs import JobRead
from api.schemas.progress import EventRead
from registry import job_rows, quotas, workers
from registry.db import database_now
from registry.job_rows import JobFilter
from registry.settings import Settings
from registry.status import JobStatus
from registry.tables import Job, JobEvent, Worker

router = APIRouter()

SHOWN_JOBS = 8
SHOWN_EVENTS = 10
_ACTIVE = (JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING)


@dataclass(frozen=True)
class WorkerCard:
    """A worker, and the job it is at if that is one of ours."""

    row: Worker
    silent_seconds: float
    job: JobRead | None


@dataclass(frozen=True)
class NamedEvent:
    """An event with the name of its job."""

    event: EventRead
    job_name: str


@dataclass(frozen=True)
class Overview:
    """Everything of the first page."""

    counts: Mapping[str, int]
    oldest_wait_seconds: float | None
    storage_bytes: int
    storage_quota: int | None
    workers: list[WorkerCard]
    running: list[JobRead]
    queued: list[JobRead]
    events: list[NamedEvent]


@router.get("/")
def overview_page(
    request: Request, who: Viewer, session: ReadSession, settings: SettingsDep
) -> Response:
    """The whole service on one page."""
    return show(request, "overview.html", {"view": _overview(session, who, settings)})


@router.get("/overview")
def overview_live(
    request: Request, who: Viewer, session: ReadSession, settings: SettingsDep
) -> Response:
    """The part of the first page that is refreshed."""
    return show(request, "_overview.html", {"view": _overview(session, who, settings)})


def _overview(session: Session, who: Principal, settings: Settings) -> Overview:
    now = database_now(session)
    running = _page(session, who, _ACTIVE)
    return Overview(
        counts=_counts(session, who.tenant_id),
        oldest_wait_seconds=_oldest_wait(session, who.tenant_id, now),
        storage_bytes=quotas.storage_used(session, who.tenant_id),
        storage_quota=quotas.of(session, who.tenant_id).storage_bytes,
        workers=_workers(session, settings, now, running),
        running=running,
        queued=_page(session, who, (JobStatus.QUEUED,)),
        events=_last_events(session, who.tenant_id),
    )


def _page(session: Session, who: Principal, statuses: tuple[JobStatus, ...]) -> list[JobRead]:
    found = job_rows.list_page(
        session, who.tenant_id, limit=SHOWN_JOBS, where=JobFilter(statuses=statuses)
    )
    return read_jobs(session, found.items)


def _counts(session: Session, tenant_id: str) -> dict[str, int]:
    query = (
        select(Job.status, func.count())
        .where(Job.tenant_id == tenant_id, Job.deleted_at.is_(None))
        .group_by(Job.status)
    )
    found = {status.value: count for status, count in session.execute(query)}
    return {status.value: found.get(status.value, 0) for status in JobStatus}


def _oldest_wait(session: Session, tenant_id: str, now: datetime) -> float | None:
    query = select(func.min(Job.queued_at)).where(
        Job.tenant_id == tenant_id, Job.status == JobStatus.QUEUED, Job.deleted_at.is_(None)
    )
    since = session.execute(query).scalar_one()
    return (now - since).total_seconds() if since is not None else None


def _workers(
    session: Session, settings: Settings, now: datetime, running: list[JobRead]
) -> list[WorkerCard]:
    ours = {job.id: job for job in running}
    return [
        WorkerCard(
            row=row,
            silent_seconds=max((now - row.heartbeat_at).total_seconds(), 0.0),
            job=ours.get(row.current_job_id or ""),
        )
        for row in workers.list_alive(session, settings.worker_timeout_seconds)
    ]


def _last_events(session: Session, tenant_id: str) -> list[NamedEvent]:
    query = (
        select(JobEvent, Job.name, Job.model)
        .join(Job, Job.id == JobEvent.job_id)
        .where(Job.tenant_id == tenant_id, Job.deleted_at.is_(None))
        # Ids sort by creation, and have an index.
        .order_by(JobEvent.id.desc())
        .limit(SHOWN_EVENTS)
    )
    return [
        NamedEvent(read_event(event), name or model)
        for event, name, model in session.execute(query)
    ]
