"""How fast a tenant's finished jobs went: what estimates of time are calibrated by."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.status import JobStatus
from registry.tables import Job

_JOBS = 20
"""Enough for a median, few enough to follow a change of machine."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Rates of the last finished jobs on the device of the newest.

    `training` is in tokens times parameters per second, None where none of them trained; text is
    calibrated on as fast. `increment_seconds` is what an increment takes beside these, per
    parameter of the base model.
    """

    device: str | None
    num_jobs: int
    training: float | None
    increment_seconds: float

    def seconds(
        self,
        *,
        num_parameters: int,
        sizes: Sequence[int],
        num_tokens: int | None,
        num_calibration_tokens: int | None,
    ) -> float | None:
        """Time for a run from `num_parameters` over the increments `sizes`; None if unknown.

        `num_calibration_tokens` are those of each cut.
        """
        beside = self.increment_seconds * num_parameters * len(sizes)
        if num_tokens is None or num_calibration_tokens is None:
            return None
        if self.training is None:
            return beside if num_tokens == 0 else None
        calibrated = num_calibration_tokens * len(sizes) * num_parameters
        return beside + (calibrated + num_tokens * fmean(sizes)) / self.training


def find_pace(session: Session, tenant_id: str) -> Pace | None:
    """The pace of the tenant's jobs, or None before any has succeeded."""
    query = (
        select(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.status == JobStatus.SUCCEEDED,
            Job.params_start.is_not(None),
        )
        .order_by(Job.created_at.desc(), Job.id.desc())
        .limit(_JOBS)
    )
    jobs = [job for job in session.scalars(query) if _seconds(job)]
    if not jobs:
        return None
    device = _device(jobs[0])
    alike = [job for job in jobs if _device(job) == device]
    rates = [rate for job in alike if (rate := _training_rate(job)) is not None]
    training = median(rates) if rates else None
    return Pace(
        device=device,
        num_jobs=len(alike),
        training=training,
        increment_seconds=median(_beside_training(job, training) for job in alike),
    )


def _seconds(job: Job) -> float | None:
    return (job.result or {}).get("seconds")


def _device(job: Job) -> str | None:
    return (job.resolved or {}).get("device")


def _training_rate(job: Job) -> float | None:
    # Measured in the last steps, at the size the model has at its end.
    if not (job.tokens_seen and job.tokens_per_second and job.params_now):
        return None
    return job.tokens_per_second * job.params_now


def _beside_training(job: Job, training: float | None) -> float:
    start, increments = job.params_start or 1, max(job.increments_done, 1)
    trained = job.tokens_seen * (start + (job.params_now or start)) / 2
    calibrated = _calibration_tokens(job) * increments * start
    spent = (trained + calibrated) / training if training else 0.0
    left = max((_seconds(job) or 0.0) - spent, 0.0)
    return left / start / increments


def _calibration_tokens(job: Job) -> int:
    """Of each of its cuts."""
    found = job.resolved or {}
    size = found.get("num_calibration_samples", 0) * found.get("calibration_sequence_length", 0)
    return int(size)
