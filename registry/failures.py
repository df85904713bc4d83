"""What follows a failed attempt: another try after a pause, or the end."""

from dataclasses import asdict, dataclass

from sqlalchemy.orm import Session

from registry import jobs
from registry.status import JobStatus
from registry.tables import Job


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why an attempt failed, as the job's `error` shows it."""

    code: str
    message: str
    retryable: bool
    param: str | None = None
    hint: str | None = None
    log_tail: str | None = None


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How long to wait after the n-th failure in a row: `base * 2^(n-1)`, at most `limit`.

    The first loss of a worker or of its child waits for nothing, since it says little about the
    job.
    """

    base_seconds: float
    limit_seconds: float

    def after(self, failures: int, *, lost: bool) -> float:
        exponent = failures - 2 if lost else failures - 1
        return min(self.base_seconds * 2**exponent, self.limit_seconds) if exponent >= 0 else 0.0


def record_failure(
    session: Session, job: Job, error: JobError, *, cause: str, backoff: Backoff, lost: bool = False
) -> JobStatus:
    """Count the failure of a leased, locked job and move it on.

    `failures` counts in a row: a committed increment sets it back, so that a job that gets on
    survives any number of lost workers, and one that gets nowhere ends after `max_attempts`.
    """
    job.failures += 1
    if job.status is JobStatus.CANCELLING:
        jobs.transition(session, job, JobStatus.CANCELLED)
    elif not error.retryable:
        _fail(session, job, error)
    elif job.failures >= job.max_attempts:
        _fail(session, job, _worker_lost_limit(job, error) if lost else error)
    elif job.status is JobStatus.PAUSING:
        jobs.transition(session, job, JobStatus.PAUSED, reason=error.message)
    else:
        _retry(session, job, error, cause, backoff.after(job.failures, lost=lost))
    return job.status


def _retry(session: Session, job: Job, error: JobError, cause: str, delay_seconds: float) -> None:
    data = {
        "cause": cause,
        "code": error.code,
        "message": error.message,
        "failures": job.failures,
        "delay_seconds": delay_seconds,
    }
    jobs.requeue(
        session,
        job,
        reason=error.message,
        event="job.retrying",
        delay_seconds=delay_seconds,
        data=data,
    )


def _fail(session: Session, job: Job, error: JobError) -> None:
    job.error = {**asdict(error), "attempt": job.attempt}
    jobs.transition(session, job, JobStatus.FAILED, reason=error.message, data={"code": error.code})


def _worker_lost_limit(job: Job, error: JobError) -> JobError:
    return JobError(
        code="worker_lost_limit",
        message=f"{job.failures} attempts in a row were lost; the last: {error.message}",
        retryable=False,
        hint="the job may need more memory than its workers have",
        log_tail=error.log_tail,
    )
