"""Rows as the objects of the contract: the only place where a column's name meets a field's."""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from api.schemas.attempts import AttemptRead
from api.schemas.checkpoints import CheckpointEvaluation, CheckpointRead, EvaluationRead, FileRead
from api.schemas.files import UploadRead
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
from api.schemas.progress import EventRead, WidthsRead
from api.schemas.webhooks import WebhookRead
from registry.jobs import EVENT_TYPES
from registry.status import JobStatus, allowed_actions
from registry.tables import (
    Checkpoint,
    CheckpointFile,
    Evaluation,
    Increment,
    Job,
    JobAttempt,
    JobEvent,
    UploadedFile,
    Webhook,
)
from registry.tenancy import queue_places

STATUS_EVENTS = frozenset({*EVENT_TYPES.values(), "job.resumed", "job.retrying"})
QUALITY = ("perplexity", "perplexity")
"""Suite and metric by which checkpoints are compared."""


def read_job(session: Session, job: Job) -> JobRead:
    """One job."""
    return read_jobs(session, [job])[0]


def read_jobs(session: Session, jobs: Sequence[Job]) -> list[JobRead]:
    """Several jobs, with two queries for all of them together."""
    changes = _transitions(session, jobs)
    positions = _queue_positions(session, jobs)
    return [_read(job, changes.get(job.id, []), positions.get(job.id)) for job in jobs]


def _read(job: Job, changes: list[Transition], position: int | None) -> JobRead:
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


def _progress(job: Job) -> Progress:
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


def fraction_done(job: Job) -> float:
    """Share of the work done: by training tokens where any are planned, else by increments."""
    if job.status is JobStatus.SUCCEEDED:
        return 1.0
    if job.tokens_planned:
        return min(job.tokens_seen / job.tokens_planned, 1.0)
    if job.increments_planned:
        return min(job.increments_done / job.increments_planned, 1.0)
    return 0.0


def _worker(job: Job) -> WorkerRead | None:
    if job.lease_owner is None:
        return None
    gpu = (job.resolved or {}).get("gpu")
    return WorkerRead(id=job.lease_owner, gpu=gpu, lease_until=job.lease_until)


def _estimate(job: Job) -> JobEstimate | None:
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


def _error(job: Job) -> JobError | None:
    if job.error is None:
        return None
    known = {key: value for key, value in job.error.items() if key in JobError.model_fields}
    log = {"log_tail_url": log_url(job.id, job.attempt, tail=200)} if job.attempt else {}
    return JobError.model_validate({"attempt": job.attempt, **known, **log})


def log_url(job_id: str, attempt: int, *, tail: int | None = None) -> str:
    """Where the log of an attempt, or its last lines, can be read."""
    lines = f"&tail={tail}" if tail else ""
    return f"/v1/jobs/{job_id}/logs?attempt={attempt}{lines}"


def read_attempt(row: JobAttempt) -> AttemptRead:
    """One attempt."""
    return AttemptRead(
        job=row.job_id,
        attempt=row.attempt,
        worker=row.worker_id,
        started_at=row.started_at,
        ended_at=row.ended_at,
        end_cause=row.end_cause,
        exit_code=row.exit_code,
        message=row.message,
        log_bytes=row.log_bytes,
        log_url=log_url(row.job_id, row.attempt),
    )


def _transitions(session: Session, jobs: Sequence[Job]) -> dict[str, list[Transition]]:
    query = (
        select(JobEvent.job_id, JobEvent.data, JobEvent.created_at)
        .where(JobEvent.job_id.in_([job.id for job in jobs]), JobEvent.type.in_(STATUS_EVENTS))
        .order_by(JobEvent.job_id, JobEvent.seq)
    )
    changes: dict[str, list[Transition]] = {}
    for job_id, data, at in session.execute(query):
        changes.setdefault(job_id, []).append(
            Transition(
                status=JobStatus(data["status"]),
                phase=data.get("phase"),
                at=at,
                message=data.get("reason"),
            )
        )
    return changes


def _queue_positions(session: Session, jobs: Sequence[Job]) -> Mapping[str, int]:
    queued = [job.id for job in jobs if job.status is JobStatus.QUEUED]
    if not queued:
        return {}
    place = queue_places(session)
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
    rows = session.execute(select(Job.id, ahead).where(Job.id.in_(queued)))
    return {job_id: count + 1 for job_id, count in rows}


def read_event(event: JobEvent) -> EventRead:
    """One event."""
    return EventRead.model_validate(
        {
            "id": event.id,
            "job": event.job_id,
            "seq": event.seq,
            "type": event.type,
            "level": event.level,
            "data": event.data,
            "created_at": event.created_at,
        }
    )


def read_upload(row: UploadedFile, offset: int) -> UploadRead:
    """A file of which `offset` bytes have arrived."""
    return UploadRead.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "status": row.status,
            "size": row.size_bytes,
            "offset": offset,
            "sha256": row.sha256 or row.declared_sha256,
            "created_at": row.created_at,
            "ready_at": row.ready_at,
        }
    )


def read_evaluation(evaluation: Evaluation) -> EvaluationRead:
    """One measurement."""
    return EvaluationRead.model_validate(
        {
            "id": evaluation.id,
            "checkpoint": evaluation.checkpoint_id,
            "increment": evaluation.increment,
            "stage": evaluation.stage,
            "tokens_seen": evaluation.num_tokens,
            "suite": evaluation.suite,
            "metric": evaluation.metric,
            "value": evaluation.value,
            "stderr": evaluation.stderr,
            "n": evaluation.num_samples,
            "protocol": evaluation.protocol,
            "created_at": evaluation.created_at,
        }
    )


def read_files(checkpoint_id: str, files: Sequence[CheckpointFile]) -> list[FileRead]:
    """The files of a checkpoint with where to download them."""
    root = f"/v1/checkpoints/{checkpoint_id}/files"
    return [
        FileRead(
            path=file.path,
            size=file.size_bytes,
            sha256=file.sha256,
            url=f"{root}/{quote(file.path)}",
        )
        for file in files
    ]


def read_checkpoint(
    checkpoint: Checkpoint, files: Sequence[CheckpointFile], evaluations: Sequence[Evaluation]
) -> CheckpointRead:
    """A checkpoint, given the evaluations of its whole job."""
    measured = {
        suite_key(row): _measurement(row)
        for row in evaluations
        if row.increment == checkpoint.increment and row.stage == "recovered"
    }
    return CheckpointRead.model_validate(
        {
            "id": checkpoint.id,
            "job": checkpoint.job_id,
            "increment": checkpoint.increment,
            "step": checkpoint.step,
            "parent": checkpoint.parent_id,
            "params": checkpoint.params,
            "size_bytes": checkpoint.size_bytes,
            "dtype": checkpoint.dtype,
            "widths": checkpoint.widths,
            "evaluations": measured,
            "baseline_ratio": _baseline_ratio(checkpoint, evaluations),
            "sha256": checkpoint.manifest_sha256,
            "files": read_files(checkpoint.id, files),
            "resumable": checkpoint.resumable,
            "status": checkpoint.status,
            "pinned": checkpoint.pinned,
            "created_at": checkpoint.created_at,
            "fence": checkpoint.fence,
        }
    )


def suite_key(row: Evaluation) -> str:
    """The suite's name; with the metric behind it where a suite has several."""
    return row.suite if row.suite == row.metric else f"{row.suite}.{row.metric}"


def _measurement(row: Evaluation) -> CheckpointEvaluation:
    return CheckpointEvaluation(
        metric=row.metric, value=row.value, stderr=row.stderr, n=row.num_samples
    )


def quality_of(evaluations: Sequence[Evaluation], increment: int, stage: str) -> float | None:
    """The held-out perplexity at one point of a job."""
    for row in evaluations:
        if (row.suite, row.metric) == QUALITY and (row.increment, row.stage) == (increment, stage):
            return row.value
    return None


def _baseline_ratio(checkpoint: Checkpoint, evaluations: Sequence[Evaluation]) -> float | None:
    base = quality_of(evaluations, 0, "base")
    now = quality_of(evaluations, checkpoint.increment, "recovered")
    if not base or now is None or not math.isfinite(now / base):
        return None
    return now / base


def read_widths(job: Job, increments: Sequence[Increment]) -> WidthsRead:
    """The widths after each committed increment, the base model's first where it is known."""
    base = (job.resolved or {}).get("widths")
    rows: list[tuple[int, int | None, list[Any]]] = [(0, job.params_start, base)] if base else []
    rows += [(row.idx, row.params_after, row.widths) for row in increments]
    return WidthsRead.model_validate(
        {
            "job": job.id,
            "increments": [idx for idx, _, _ in rows],
            "params": [params for _, params, _ in rows],
            "layers": [widths for _, _, widths in rows],
        }
    )


def read_webhook(row: Webhook) -> WebhookRead:
    """One webhook, without its secret."""
    return WebhookRead.model_validate(
        {
            "id": row.id,
            "job": row.job_id,
            "url": row.url,
            "events": row.events,
            "status": row.status,
            "status_reason": row.status_reason,
            "created_at": row.created_at,
        }
    )
