"""Rows as the objects of the contract: the only place where a column's name meets a field's.

Jobs have a module of their own, `api.job_representations`.
"""

import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from sqlalchemy.orm import Session

from api.job_representations import log_url
from api.schemas.attempts import AttemptRead
from api.schemas.checkpoints import CheckpointEvaluation, CheckpointRead, EvaluationRead, FileRead
from api.schemas.files import UploadRead
from api.schemas.models import AliasRead, RegisteredModelRead, VersionRead
from api.schemas.progress import EventRead, WidthsRead
from api.schemas.webhooks import WebhookRead
from registry import models
from registry.tables import (
    Checkpoint,
    CheckpointFile,
    Evaluation,
    Increment,
    Job,
    JobAttempt,
    JobEvent,
    ModelAlias,
    ModelVersion,
    RegisteredModel,
    UploadedFile,
    Webhook,
)

QUALITY = ("perplexity", "perplexity")
"""Suite and metric by which checkpoints are compared."""


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


def read_alias(model: RegisteredModel, row: ModelAlias) -> AliasRead:
    """An alias and the version it names."""
    return AliasRead(
        model=model.name,
        alias=row.alias,
        version=row.version,
        revision=row.revision,
        updated_at=row.updated_at,
    )


def read_version(model: RegisteredModel, row: ModelVersion) -> VersionRead:
    """One version."""
    return VersionRead(
        model=model.name,
        version=row.version,
        checkpoint=row.checkpoint_id,
        description=row.description,
        created_at=row.created_at,
    )


def read_registered_model(session: Session, row: RegisteredModel) -> RegisteredModelRead:
    """A registered model and its aliases."""
    return RegisteredModelRead(
        id=row.id,
        name=row.name,
        description=row.description,
        last_version=row.last_version,
        aliases=[read_alias(row, alias) for alias in models.list_aliases(session, row)],
        created_at=row.created_at,
    )
