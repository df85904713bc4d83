"""Reading checkpoints, their files and what was measured of them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import NotFound
from registry.tables import Checkpoint, CheckpointFile, Evaluation, Increment


def get(session: Session, tenant_id: str, checkpoint_id: str) -> Checkpoint:
    """The tenant's checkpoint, deleted ones included.

    Raises:
        NotFound: there is none, or it is another tenant's.
    """
    row = session.scalars(
        select(Checkpoint).where(Checkpoint.id == checkpoint_id, Checkpoint.tenant_id == tenant_id)
    ).one_or_none()
    if row is None:
        raise NotFound("checkpoint", checkpoint_id)
    return row


def list_for_job(session: Session, job_id: str) -> list[Checkpoint]:
    """The job's checkpoints in the order of its increments."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.increment)
    return list(session.scalars(query))


def files(session: Session, checkpoint_id: str) -> list[CheckpointFile]:
    """The files of a checkpoint, by path."""
    query = (
        select(CheckpointFile)
        .where(CheckpointFile.checkpoint_id == checkpoint_id)
        .order_by(CheckpointFile.path)
    )
    return list(session.scalars(query))


def get_file(session: Session, checkpoint_id: str, path: str) -> CheckpointFile:
    """One file by the path in its manifest.

    Raises:
        NotFound: the checkpoint holds no such file.
    """
    row = session.get(CheckpointFile, (checkpoint_id, path))
    if row is None:
        raise NotFound("file", path)
    return row


def evaluations_for_job(session: Session, job_id: str) -> list[Evaluation]:
    """Everything measured in a job, in the order it was: base model first."""
    query = (
        select(Evaluation)
        .where(Evaluation.job_id == job_id)
        .order_by(Evaluation.increment, Evaluation.num_tokens, Evaluation.created_at, Evaluation.id)
    )
    return list(session.scalars(query))


def evaluations_for_checkpoint(session: Session, checkpoint_id: str) -> list[Evaluation]:
    """What was measured of one checkpoint, also before its recovery."""
    query = (
        select(Evaluation)
        .where(Evaluation.checkpoint_id == checkpoint_id)
        .order_by(Evaluation.created_at, Evaluation.id)
    )
    return list(session.scalars(query))


def increments(session: Session, job_id: str) -> list[Increment]:
    """The committed increments of a job, ascending."""
    query = select(Increment).where(Increment.job_id == job_id).order_by(Increment.idx)
    return list(session.scalars(query))
