"""Falling back: a job whose newest checkpoint is damaged goes on from the one before."""

from dataclasses import replace

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from registry import events
from registry.leases import Lease, guard
from registry.tables import Checkpoint, CheckpointFile, Evaluation, Increment, Job


def reject_head(session: Session, lease: Lease, message: str) -> Lease | None:
    """Cut the head, whose bytes are damaged, off the job's line; the same lease, one step back.

    None if nothing before it can be resumed from, or if someone else names the head, which must not
    vanish from under them; then nothing changed. The event is what stays of the increment that was
    lost: it will be committed anew.

    Raises:
        LeaseLost: it is not this lease's job any more.
    """
    job = guard(session, lease)
    head = session.get_one(Checkpoint, job.head_checkpoint_id)
    parent = session.get(Checkpoint, head.parent_id) if head.parent_id else None
    if parent is None or not parent.resumable or head.pinned:
        return None
    data = {
        "code": "checkpoint_corrupt",
        "message": message,
        "checkpoint": head.id,
        "increment": head.increment,
        "manifest_sha256": head.manifest_sha256,
        "resumed_from": parent.id,
    }
    _forget(session, head)
    _go_back(job, parent)
    events.append(session, job, "warning", data, level="warning")
    return replace(lease, increments_done=parent.increment, head_checkpoint_id=parent.id)


def _go_back(job: Job, parent: Checkpoint) -> None:
    job.increments_done = parent.increment
    job.head_checkpoint_id = job.best_checkpoint_id = parent.id
    job.params_now = parent.params
    job.step = parent.step
    job.tokens_seen = parent.num_tokens
    job.version += 1


def _forget(session: Session, head: Checkpoint) -> None:
    quietly = {"synchronize_session": False}
    # What was measured is measured again; until then it belongs to no checkpoint.
    session.execute(
        update(Evaluation).where(Evaluation.checkpoint_id == head.id).values(checkpoint_id=None),
        execution_options=quietly,
    )
    for statement in (
        delete(Increment).where(Increment.checkpoint_id == head.id),
        delete(CheckpointFile).where(CheckpointFile.checkpoint_id == head.id),
        delete(Checkpoint).where(Checkpoint.id == head.id),
    ):
        session.execute(statement, execution_options=quietly)
    session.expunge(head)
