"""A job's row as the object of the contract."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, func, literal_column, or_, select

from api.schemas.jobs import (
    JobError,
    JobEstimate,
    JobLinks,
    JobRead,
    JobResult,
    Progress,
    Queue,
    Transition,
    WorkerRead,
)
from registry.db import dialect_of
from registry.job_rows import JobRow
from registry.jobs import EVENT_TYPES
from registry.prepared import Prepared, Reader
from registry.status import JobStatus, allowed_actions
from registry.tables import Job, JobEvent
from registry.tenancy import queue_places

STATUS_EVENTS = frozenset({*EVENT_TYPES.values(), "job.resumed", "job.retrying"})


def read_job(reader: Reader, job: Job | JobRow) -> JobRead:
    """One job."""
    return read_jobs(reader, [job])[0]


def read_new_job(reader: Reader, job: JobRow) -> JobRead:
    """A job that was created in this transaction: it has entered one status, the queue."""
    entered = Transition(status=job.status, phase=None, at=job.created_at, message=None)
    return _read(job, [entered], _queue_positions(reader, [job]).get(job.id))


def read_jobs(reader: Reader, jobs: Sequence[Job | JobRow]) -> list[JobRead]:
    """Several jobs, with two queries for all of them together."""
    changes = _transitions(reader, jobs)
    positions = _queue_positions(reader, jobs)
    return [_read(job, changes.get(job.id, []), positions.get(job.id)) for job in jobs]


def _read(job: Job | JobRow, changes: list[Transition], position: int | None) -> JobRead:
    return JobRead.model_validate(
        {
            "id": job.id,
            "version": job.version,
            "name": job.name,
            "status": job.status,
            "phase": job.phase,
            "status_reason": job.status_reason,
            "outcome": job.outcome,
            "allowed_actions": allowed_actions(job.status),
            "created_at": job.created_at,
            "queued_at": job.queued_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
            "deadline_at": job.deadline_at,
            "priority": job.priority,
            "queue": Queue(position=position, ahead_seconds=None),
            "progress": _progress(job),
            "attempt": job.attempt,
            "max_attempts": job.max_attempts,
            "worker": _worker(job),
            "latest_checkpoint": job.head_checkpoint_id,
            "best_checkpoint": job.best_checkpoint_id,
            "resolved": {"recipe": job.recipe, **(job.resolved or {})},
            "result": None if job.result is None else JobResult.model_validate(job.result),
            "estimate": _estimate(job),
            "error": _error(job),
            "status_transitions": changes,
            "spec": job.spec,
            "metadata": job.job_metadata,
            "links": job_links(job.id),
        }
    )


def job_links(job_id: str) -> JobLinks:
    """Where to go on from a job."""
    root = f"/v1/jobs/{job_id}"
    parts = (
        *("events", "stream", "metrics", "widths", "logs", "attempts"),
        *("checkpoints", "evaluations", "comparison"),
    )
    links = {part: f"{root}/{part}" for part in parts}
    return JobLinks.model_validate({"self": root, **links, "ui": f"/jobs/{job_id}"})


def _progress(job: Job | JobRow) -> Progress:
    return Progress(
        fraction=fraction_done(job),
        increments_done=job.increments_done,
        increments_planned=job.increments_planned,
        params_start=job.params_start,
        params_now=job.params_now,
        params_target=job.params_target,
        tokens_seen=job.tokens_seen,
        tokens_per_s=job.tokens_per_second,
        estimate_available=job.eta_seconds is not None,
        eta_seconds=job.eta_seconds,
        updated_at=job.progress_at,
    )


def fraction_done(job: Job | JobRow) -> float:
    """Share of the work done: by training tokens where any are planned, else by increments."""
    if job.status is JobStatus.SUCCEEDED:
        return 1.0
    if job.tokens_planned:
        return min(job.tokens_seen / job.tokens_planned, 1.0)
    if job.increments_planned:
        return min(job.increments_done / job.increments_planned, 1.0)
    return 0.0


def _worker(job: Job | JobRow) -> WorkerRead | None:
    if job.lease_owner is None:
        return None
    gpu = (job.resolved or {}).get("gpu")
    return WorkerRead(id=job.lease_owner, gpu=gpu, lease_until=job.lease_until)


def _estimate(job: Job | JobRow) -> JobEstimate | None:
    if job.estimate is None:
        return None
    result = job.result or {}
    actual = {
        "seconds": result.get("seconds"),
        "params": result.get("params"),
        "tokens": job.tokens_seen if job.result is not None else None,
    }
    errors = {f"{name}_error": _error_of(job.estimate[name], actual[name]) for name in actual}
    said = {f"actual_{name}": value for name, value in actual.items()}
    return JobEstimate.model_validate({**job.estimate, **said, **errors})


def _error_of(foretold: float | None, actual: float | None) -> float | None:
    return foretold / actual - 1 if actual and foretold is not None else None


def _error(job: Job | JobRow) -> JobError | None:
    if job.error is None:
        return None
    known = {key: value for key, value in job.error.items() if key in JobError.model_fields}
    log = {"log_tail_url": log_url(job.id, job.attempt, tail=200)} if job.attempt else {}
    return JobError.model_validate({"attempt": job.attempt, **known, **log})


def log_url(job_id: str, attempt: int, *, tail: int | None = None) -> str:
    """Where the log of an attempt, or its last lines, can be read."""
    lines = f"&tail={tail}" if tail else ""
    return f"/v1/jobs/{job_id}/logs?attempt={attempt}{lines}"


def _status_changes(which: ColumnElement[bool]) -> Select[Any]:
    return (
        select(JobEvent.job_id, JobEvent.data, JobEvent.created_at)
        .where(
            which,
            JobEvent.type.in_([literal_column(f"'{kind}'") for kind in sorted(STATUS_EVENTS)]),
        )
        .order_by(JobEvent.job_id, JobEvent.seq)
    )


# A list of ids is written into the statement anew each time, which costs more than asking.
_CHANGES_OF_ONE = Prepared(_status_changes(JobEvent.job_id == bindparam("job_id")))
_CHANGES = _status_changes(JobEvent.job_id.in_(bindparam("job_ids", expanding=True)))


def _transitions(reader: Reader, jobs: Sequence[Job | JobRow]) -> dict[str, list[Transition]]:
    changes: dict[str, list[Transition]] = {}
    if len(jobs) == 1:
        found = _CHANGES_OF_ONE.rows(reader, job_id=jobs[0].id)
    else:
        found = reader.execute(_CHANGES, {"job_ids": [job.id for job in jobs]}).all()
    for row in found:
        changes.setdefault(row.job_id, []).append(
            Transition(
                status=JobStatus(row.data["status"]),
                phase=row.data.get("phase"),
                at=row.created_at,
                message=row.data.get("reason"),
            )
        )
    return changes


def _queue_positions(reader: Reader, jobs: Sequence[Job | JobRow]) -> Mapping[str, int]:
    queued = [job.id for job in jobs if job.status is JobStatus.QUEUED]
    if not queued:
        return {}
    if len(queued) == 1:
        found = _place_of_one(dialect_of(reader)).rows(reader, job_id=queued[0])
    else:
        found = reader.execute(_places_in_queue(dialect_of(reader)), {"job_ids": queued}).all()
    return {row.id: row.ahead + 1 for row in found}


@cache
def _places_in_queue(dialect: str) -> Select[Any]:
    return _places(dialect).where(Job.id.in_(bindparam("job_ids", expanding=True)))


@cache
def _place_of_one(dialect: str) -> Prepared:
    return Prepared(_places(dialect).where(Job.id == bindparam("job_id")))


def _places(dialect: str) -> Select[Any]:
    place = queue_places(dialect)
    ahead = (
        select(func.count())
        .select_from(place)
        .where(
            place.c.queue == Job.queue,
            or_(
                place.c.priority > Job.priority,
                and_(place.c.priority == Job.priority, place.c.queued_at < Job.queued_at),
            ),
        )
        .correlate(Job)
        .scalar_subquery()
    )
    return select(Job.id, ahead.label("ahead"))
