"""The attempts of a job, and their logs."""

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from registry.blobs import refer_to
from registry.errors import NotFound
from registry.storage import StoredBlob
from registry.tables import JobAttempt


def list_for_job(session: Session, job_id: str) -> list[JobAttempt]:
    """The attempts of a job, oldest first."""
    query = select(JobAttempt).where(JobAttempt.job_id == job_id).order_by(JobAttempt.fence)
    return list(session.scalars(query))


def get(session: Session, job_id: str, attempt: int | None) -> JobAttempt:
    """One attempt of a job by its number; the last one by default.

    Raises:
        NotFound: there was no such attempt.
    """
    query = select(JobAttempt).where(JobAttempt.job_id == job_id)
    if attempt is not None:
        query = query.where(JobAttempt.attempt == attempt)
    row = session.scalars(query.order_by(JobAttempt.fence.desc()).limit(1)).one_or_none()
    if row is None:
        raise NotFound("attempt", str(attempt or "of this job"))
    return row


def record_energy(session: Session, job_id: str, fence: int, joules: float) -> None:
    """What the devices of an attempt have used since it began."""
    query = update(JobAttempt).where(JobAttempt.job_id == job_id, JobAttempt.fence == fence)
    session.execute(query.values(energy_joules=joules))


def energy_joules(session: Session, job_id: str) -> float | None:
    """What all attempts of a job have used, of those whose devices say; None where none did."""
    query = select(func.sum(JobAttempt.energy_joules)).where(JobAttempt.job_id == job_id)
    return session.execute(query).scalar_one()


def without_log(session: Session, job_id: str) -> list[JobAttempt]:
    """Attempts that have ended and whose log is not in the artifact store."""
    query = select(JobAttempt).where(
        JobAttempt.job_id == job_id,
        JobAttempt.ended_at.is_not(None),
        JobAttempt.log_sha256.is_(None),
    )
    return list(session.scalars(query))


def keep_log(session: Session, job_id: str, fence: int, blob: StoredBlob) -> None:
    """Let an attempt refer to its stored log.

    Raises:
        BlobNotFound: the blob is being collected; store it again.
    """
    refer_to(session, [blob])
    row = session.get_one(JobAttempt, (job_id, fence))
    row.log_sha256, row.log_bytes = blob.sha256, blob.num_bytes


def log_name(job_id: str, fence: int) -> str:
    """Where an attempt's log lies under `data_dir` while it grows."""
    return f"logs/{job_id}/attempt-{fence:06d}.log"
