"""Commits of increments, and the ends of attempts, under a lease: each function checks the fence
first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from pruning.events import Outcome
from pruning.manifest import TRAINING_STATE, Manifest
from registry import blobs, events, jobs, retention
from registry.db import database_now
from registry.errors import CommitConflict
from registry.failures import Backoff, JobError, record_failure
from registry.ids import new_id
from registry.leases import Lease, end_attempt, guard, held_seconds, release
from registry.progress import store_measurement
from registry.status import JobStatus
from registry.tables import Checkpoint, CheckpointFile, Evaluation, Increment, Job


@dataclass(frozen=True)
class PublishedFile:
    """A file of a checkpoint whose bytes are durable in the artifact store."""

    path: str
    sha256: str
    num_bytes: int


# --- commit ---------------------------------------------------------------------------------------


def commit_increment(
    session: Session,
    lease: Lease,
    manifest: Manifest,
    manifest_sha256: str,
    files: Sequence[PublishedFile],
) -> Checkpoint:
    """Make a published increment part of the job; the last one also ends the job.

    Exactly one execution can commit increment `i`: the fence says whose turn it is, and the
    position must be `i - 1`.

    Raises:
        LeaseLost: it is not this lease's job any more.
        CommitConflict: the job does not stand right before this increment.
        BlobNotFound: a blob was collected between publishing and now; publish again.
    """
    earlier = _committed_already(session, lease, manifest.increment, manifest_sha256)
    if earlier is not None:
        return earlier
    job = guard(session, lease)
    if job.status is JobStatus.CANCELLING or job.increments_done != manifest.increment - 1:
        raise CommitConflict(
            f"{job.id} is {job.status} after {job.increments_done} increments, "
            f"{manifest.increment} cannot be committed"
        )
    checkpoint = _add_checkpoint(session, job, manifest, manifest_sha256, files)
    _add_increment(session, job, manifest, checkpoint)
    _link_evaluations(session, job, manifest, checkpoint)
    _advance(session, job, lease, manifest, checkpoint)
    events.append(session, job, "checkpoint.created", _checkpoint_data(checkpoint))
    if manifest.final:
        _succeed(session, job, checkpoint, manifest.outcome)
    retention.apply(session, job)
    return checkpoint


def _committed_already(
    session: Session, lease: Lease, increment: int, manifest_sha256: str
) -> Checkpoint | None:
    query = select(Checkpoint).where(
        Checkpoint.job_id == lease.job_id,
        Checkpoint.increment == increment,
        Checkpoint.fence == lease.fence,
        Checkpoint.manifest_sha256 == manifest_sha256,
    )
    return session.scalars(query).one_or_none()


def _add_checkpoint(
    session: Session,
    job: Job,
    manifest: Manifest,
    manifest_sha256: str,
    files: Sequence[PublishedFile],
) -> Checkpoint:
    blobs.refer_to(session, files)
    checkpoint = Checkpoint(
        id=new_id("ckpt"),
        tenant_id=job.tenant_id,
        job_id=job.id,
        increment=manifest.increment,
        fence=job.fence,
        parent_id=job.head_checkpoint_id,
        step=manifest.step,
        num_tokens=manifest.num_tokens,
        params=manifest.num_parameters,
        size_bytes=manifest.num_bytes,
        dtype=manifest.dtype,
        widths=[layer.model_dump() for layer in manifest.widths],
        manifest_sha256=manifest_sha256,
        final=manifest.final,
        resumable=any(file.path.startswith(f"{TRAINING_STATE}/") for file in files),
        created_at=database_now(session),
    )
    session.add(checkpoint)
    session.flush()
    for file in files:
        session.add(
            CheckpointFile(
                checkpoint_id=checkpoint.id,
                path=file.path,
                sha256=file.sha256,
                size_bytes=file.num_bytes,
            )
        )
    return checkpoint


def _add_increment(session: Session, job: Job, manifest: Manifest, checkpoint: Checkpoint) -> None:
    parent = session.get(Checkpoint, checkpoint.parent_id) if checkpoint.parent_id else None
    session.add(
        Increment(
            job_id=job.id,
            idx=manifest.increment,
            fence=job.fence,
            checkpoint_id=checkpoint.id,
            parent_checkpoint_id=checkpoint.parent_id,
            manifest_sha256=checkpoint.manifest_sha256,
            params_before=parent.params if parent else manifest.base_num_parameters,
            params_after=manifest.num_parameters,
            widths=checkpoint.widths,
            step=manifest.step,
            num_tokens=manifest.num_tokens,
            committed_at=checkpoint.created_at,
        )
    )


def _link_evaluations(
    session: Session, job: Job, manifest: Manifest, checkpoint: Checkpoint
) -> None:
    # The manifest is what the checkpoint says of itself; measurements that came up as events are
    # there.
    for measured in manifest.measurements:
        tokens = manifest.num_tokens if measured.increment == manifest.increment else 0
        store_measurement(session, job, measured, num_tokens=tokens, replace=False)
    session.execute(
        update(Evaluation)
        .where(
            Evaluation.job_id == job.id,
            Evaluation.increment == manifest.increment,
            Evaluation.checkpoint_id.is_(None),
        )
        .values(checkpoint_id=checkpoint.id),
        execution_options={"synchronize_session": False},
    )


def _advance(
    session: Session, job: Job, lease: Lease, manifest: Manifest, checkpoint: Checkpoint
) -> None:
    job.increments_done = manifest.increment
    job.head_checkpoint_id = job.best_checkpoint_id = checkpoint.id
    job.params_now = manifest.num_parameters
    job.step = manifest.step
    job.tokens_seen = manifest.num_tokens
    job.failures = 0
    job.lease_until = database_now(session) + timedelta(seconds=lease.seconds)
    job.version += 1


def _checkpoint_data(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint.id,
        "increment": checkpoint.increment,
        "num_parameters": checkpoint.params,
        "num_bytes": checkpoint.size_bytes,
        "num_tokens": checkpoint.num_tokens,
        "step": checkpoint.step,
        "final": checkpoint.final,
    }


# --- ends -----------------------------------------------------------------------------------------


def finish(session: Session, lease: Lease, outcome: Outcome, *, increment: int) -> JobStatus:
    """End a job short of its target: what it committed last, after `increment`, is its result.

    Raises:
        LeaseLost: it is not this lease's job any more.
        CommitConflict: the job does not stand right after this increment, or has no checkpoint.
    """
    job = guard(session, lease)
    if job.status is JobStatus.CANCELLING:
        return release(session, lease, cause="cancelled")
    checkpoint = session.get(Checkpoint, job.head_checkpoint_id) if job.head_checkpoint_id else None
    if checkpoint is None or job.increments_done != increment:
        raise CommitConflict(
            f"{job.id} stands after {job.increments_done} increments, "
            f"it cannot end after {increment}"
        )
    _succeed(session, job, checkpoint, outcome)
    retention.apply(session, job)
    return job.status


def _succeed(session: Session, job: Job, checkpoint: Checkpoint, outcome: Outcome | None) -> None:
    end_attempt(session, job, cause="finished", exit_code=0)
    base_params = session.execute(
        select(Increment.params_before).filter_by(job_id=job.id, idx=1)
    ).scalar_one()
    job.outcome = outcome
    job.result = {
        "checkpoint": checkpoint.id,
        "params": checkpoint.params,
        "size_bytes": checkpoint.size_bytes,
        "reduction": 1 - checkpoint.params / base_params,
        "eval": _measured(session, job, increment=checkpoint.increment, stage="recovered"),
        "pruned": _measured(session, job, increment=checkpoint.increment, stage="pruned"),
        "baseline": _measured(session, job, increment=0, stage="base"),
        "seconds": held_seconds(session, job.id),
    }
    data = {"outcome": job.outcome, "checkpoint": checkpoint.id}
    jobs.transition(session, job, JobStatus.SUCCEEDED, data=data)


def _measured(
    session: Session, job: Job, *, increment: int, stage: str
) -> dict[str, dict[str, float | None]]:
    query = select(Evaluation).filter_by(job_id=job.id, increment=increment, stage=stage)
    values: dict[str, dict[str, float | None]] = {}
    for row in session.scalars(query):
        values.setdefault(row.suite, {})[row.metric] = row.value
    return values


def fail(
    session: Session,
    lease: Lease,
    error: JobError,
    *,
    cause: str,
    backoff: Backoff,
    exit_code: int | None = None,
    lost: bool = False,
) -> JobStatus:
    """End the attempt in failure; the job is tried again or has failed.

    Raises:
        LeaseLost: it is not this lease's job any more.
    """
    job = guard(session, lease)
    end_attempt(
        session,
        job,
        cause=cause,
        exit_code=exit_code,
        message=error.message,
        log_tail=error.log_tail,
    )
    return record_failure(session, job, error, cause=cause, backoff=backoff, lost=lost)
