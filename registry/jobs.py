"""Jobs: creating and finding them, and the only door to their status."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from pruning.recipe import Recipe
from pruning.recipe_parts.model import HubModel
from registry import events, files, job_rows, outbox, scheduling, webhooks
from registry.db import database_now, session_on
from registry.errors import InvalidTransition, NotFound
from registry.ids import new_id
from registry.job_rows import JobRow
from registry.prepared import Reader
from registry.status import (
    ACTIONS,
    LEASED,
    TERMINAL,
    JobAction,
    JobStatus,
    allowed_actions,
    may_become,
)
from registry.tables import Job
from registry.webhooks import WebhookWish

DEFAULT_MAX_ATTEMPTS = 8

PauseMode = Literal["save", "latest"]


def create(
    writer: Reader,
    *,
    tenant_id: str,
    recipe: Recipe,
    spec: Mapping[str, Any],
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    priority: int = 0,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    max_runtime_seconds: float | None = None,
    reserved_bytes: int = 0,
    estimate: Mapping[str, Any] | None = None,
    webhook: WebhookWish | None = None,
) -> JobRow:
    """A queued job, its first events and the hint that will wake a worker.

    Raises:
        FileNotUsable: the recipe names a file that is not there, or not whole.
    """
    now = database_now(writer)
    model = recipe.model
    queued = {"status": JobStatus.QUEUED.value, "reason": None, "attempt": 0}
    first: list[tuple[str, dict[str, Any]]] = [
        ("job.created", {"name": name}),
        ("job.queued", queued),
    ]
    values = {
        "id": new_id("job"),
        "tenant_id": tenant_id,
        "name": name,
        "model": model.id if isinstance(model, HubModel) else model.path,
        "spec": dict(spec),
        "recipe": recipe.model_dump(mode="json"),
        "job_metadata": dict(metadata or {}),
        "estimate": dict(estimate) if estimate is not None else None,
        "priority": priority,
        "queue": scheduling.queue_for(recipe),
        "reserved_bytes": reserved_bytes,
        "max_attempts": max_attempts,
        "max_runtime_seconds": max_runtime_seconds,
        "status": JobStatus.QUEUED,
        "attempt": 0,
        "fence": 0,
        "last_event_seq": len(first),
        "not_before": now,
        "hinted_at": now,
        "created_at": now,
        "queued_at": now,
        "deadline_at": _after(now, max_runtime_seconds),
    }
    job = job_rows.insert(writer, values)
    outbox.hint(writer, job, now=now)
    if webhook is not None:
        with session_on(writer) as session:
            webhooks.create_for_job(session, job, webhook)
    events.insert_first(writer, job, first)
    files.attach(writer, job, recipe)
    return job


def _after(start: datetime, seconds: float | None) -> datetime | None:
    return start + timedelta(seconds=seconds) if seconds else None


# Made once: putting a query together takes longer than running it.
_ONE = select(Job).where(
    Job.id == bindparam("job_id"),
    Job.tenant_id == bindparam("tenant_id"),
    Job.deleted_at.is_(None),
)


def get(session: Session, tenant_id: str, job_id: str, *, for_update: bool = False) -> Job:
    """The tenant's job.

    Raises:
        NotFound: there is none, it was deleted, or it is another tenant's.
    """
    asked = {"tenant_id": tenant_id, "job_id": job_id}
    job = session.scalars(_locked(_ONE) if for_update else _ONE, asked).one_or_none()
    if job is None:
        raise NotFound("job", job_id)
    return job


def lock(session: Session, job_id: str) -> Job:
    """The job, whoever's it is, held until the transaction ends.

    Raises:
        NotFound: there is none.
    """
    job = session.scalars(_locked(select(Job).where(Job.id == job_id))).one_or_none()
    if job is None:
        raise NotFound("job", job_id)
    return job


def _locked(query: Select[Job]) -> Select[Job]:
    return query.with_for_update().execution_options(populate_existing=True)


# --- status ---------------------------------------------------------------------------------------

EVENT_TYPES: Mapping[JobStatus, str] = {
    JobStatus.QUEUED: "job.queued",
    JobStatus.RUNNING: "job.started",
    JobStatus.PAUSING: "job.pausing",
    JobStatus.PAUSED: "job.paused",
    JobStatus.CANCELLING: "job.cancelling",
    JobStatus.SUCCEEDED: "job.succeeded",
    JobStatus.FAILED: "job.failed",
    JobStatus.CANCELLED: "job.cancelled",
}


def transition(
    session: Session,
    job: Job,
    status: JobStatus,
    *,
    reason: str | None = None,
    event: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Move a locked job to `status` and write the event: the only code that sets `Job.status`.

    Leaving a leased status drops the lease. `event` replaces the status's usual event type.

    Raises:
        InvalidTransition: the table in `registry.status` does not allow it.
    """
    if not may_become(job.status, status):
        raise _invalid(job, f"a {job.status} job cannot become {status}")
    now = database_now(session)
    before = job.status
    job.status = status
    job.status_reason = reason
    job.version += 1
    if status not in LEASED:
        job.lease_owner = job.lease_until = job.phase = job.eta_seconds = None
    if status is JobStatus.QUEUED:
        job.queued_at, job.finished_at, job.num_hints = now, None, 0
    if status in TERMINAL:
        job.finished_at = now
    session.flush()
    extra = {"from": before.value, **(data or {})}
    level = "error" if status is JobStatus.FAILED else "info"
    events.append(
        session, job, event or EVENT_TYPES[status], {**_status_data(job), **extra}, level=level
    )


def _status_data(job: Job) -> dict[str, Any]:
    return {"status": job.status.value, "reason": job.status_reason, "attempt": job.attempt}


def _invalid(job: Job, message: str) -> InvalidTransition:
    return InvalidTransition(
        message, status=job.status, allowed_actions=allowed_actions(job.status)
    )


def _require(job: Job, action: JobAction) -> None:
    if job.status not in ACTIONS[action]:
        raise _invalid(job, f"cannot {action} a {job.status} job")


# --- what users ask for: each repeats harmlessly, and takes a job got `for_update` ----------------


def request_cancel(session: Session, job: Job) -> None:
    """Cancel at once if nobody runs it, else ask the worker to stop.

    Raises:
        InvalidTransition: the job has already ended otherwise.
    """
    if job.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
        return
    _require(job, JobAction.CANCEL)
    held = job.status in LEASED
    transition(session, job, JobStatus.CANCELLING if held else JobStatus.CANCELLED)


def request_pause(session: Session, job: Job, mode: PauseMode = "save") -> None:
    """Pause at the next boundary (`save`), or at once, falling back on the last checkpoint
    (`latest`).

    Raises:
        InvalidTransition: the job is not under way, or `latest` would lose everything.
    """
    if job.status in (JobStatus.PAUSING, JobStatus.PAUSED):
        return
    _require(job, JobAction.PAUSE)
    held = job.status in LEASED
    if held and mode == "latest" and job.head_checkpoint_id is None:
        raise _invalid(
            job, "no checkpoint is committed yet, pausing at the latest would start over"
        )
    job.pause_mode = mode
    transition(session, job, JobStatus.PAUSING if held else JobStatus.PAUSED, data={"mode": mode})


def resume(session: Session, job: Job) -> None:
    """Queue a paused job again.

    Raises:
        InvalidTransition: the job is not paused.
    """
    if job.status is JobStatus.QUEUED:
        return
    _require(job, JobAction.RESUME)
    job.pause_mode = None
    requeue(session, job, event="job.resumed")


def retry(session: Session, job: Job) -> None:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint.

    Raises:
        InvalidTransition: the job neither failed nor was cancelled.
    """
    if job.status is JobStatus.QUEUED:
        return
    _require(job, JobAction.RETRY)
    now = database_now(session)
    job.failures = 0
    job.error = job.pause_mode = None
    seconds = job.max_runtime_seconds
    job.deadline_at = now + timedelta(seconds=seconds) if seconds else None
    requeue(session, job)


def update(session: Session, job: Job, changes: Mapping[str, Any]) -> None:
    """Change what describes a job or limits it; the recipe stays as it is.

    `changes` holds any of name, job_metadata, priority, max_attempts, max_runtime_seconds.
    """
    for name, value in changes.items():
        setattr(job, name, value)
    if "max_runtime_seconds" in changes and job.finished_at is None:
        seconds = job.max_runtime_seconds
        job.deadline_at = job.created_at + timedelta(seconds=seconds) if seconds else None
    job.version += 1
    session.flush()
    events.append(session, job, "job.updated", {"fields": sorted(changes)})


def delete(session: Session, job: Job) -> None:
    """Hide an ended job; what it stored is collected later.

    Raises:
        InvalidTransition: the job has not ended.
    """
    _require(job, JobAction.DELETE)
    job.deleted_at = database_now(session)
    job.version += 1
    own = webhooks.of_job(session, job.id)
    if own is not None:
        webhooks.delete(own)


def requeue(
    session: Session,
    job: Job,
    *,
    reason: str | None = None,
    event: str | None = None,
    delay_seconds: float = 0.0,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Back into the queue, to be tried no earlier than `delay_seconds` from now."""
    job.not_before = database_now(session) + timedelta(seconds=delay_seconds)
    transition(session, job, JobStatus.QUEUED, reason=reason, event=event, data=data)
    job.hinted_at = outbox.hint(session, job, available_at=job.not_before)
