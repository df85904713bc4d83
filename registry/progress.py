"""What a run reports between its commits, written under its lease: each function checks the fence
first."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from pruning.events import EvaluationFinished, PruneFinished, RunStarted, StepFinished
from pruning.manifest import Measurement
from registry import events, metrics
from registry.column_types import finite
from registry.db import database_now, insert_unless_exists
from registry.ids import new_id
from registry.leases import Lease, guard
from registry.tables import Evaluation, Job


def record_event(
    session: Session,
    lease: Lease,
    event_type: str,
    data: Mapping[str, Any],
    *,
    level: str = "info",
) -> None:
    """Append an event for the holder of the lease.

    Raises:
        LeaseLost: it is not this lease's job any more.
    """
    job = guard(session, lease)
    events.append(session, job, event_type, dict(data), level=level)


def record_phase(session: Session, lease: Lease, phase: str, increment: int) -> None:
    """Note what the job is doing now."""
    job = guard(session, lease)
    if job.phase != phase:
        job.phase = phase
        job.version += 1
    events.append(session, job, "phase.changed", {"phase": phase, "increment": increment})


def record_run_started(session: Session, lease: Lease, event: RunStarted) -> None:
    """Keep what the run found: sizes, revisions, versions, and how much there is to do."""
    job = guard(session, lease)
    data = event.model_dump(mode="json", exclude={"type", "at"})
    job.resolved = {
        "model_revision": event.model_revision,
        "model_type": event.model_type,
        "data_fingerprint": event.data_fingerprint,
        "num_prunable_parameters": event.num_prunable_parameters,
        "num_calibration_samples": event.num_calibration_samples,
        "calibration_sequence_length": event.calibration_sequence_length,
        "widths": data["widths"],
        "versions": event.versions,
        "device": event.device,
    }
    job.params_start = event.num_parameters
    job.params_target = event.target_num_parameters
    if job.params_now is None:
        job.params_now = event.num_parameters
    job.increments_planned = event.num_increments
    job.tokens_planned = event.num_tokens
    job.version += 1
    events.append(session, job, "job.validated", data)


def record_prune(session: Session, lease: Lease, event: PruneFinished) -> None:
    """Note a cut."""
    job = guard(session, lease)
    job.params_now = event.num_parameters
    job.version += 1
    events.append(session, job, "prune.step", event.model_dump(mode="json", exclude={"type", "at"}))


def record_steps(
    session: Session, lease: Lease, steps: Sequence[StepFinished], *, eta_seconds: float | None
) -> None:
    """Store optimizer steps and the progress they mean. An unknown time left is None."""
    job = guard(session, lease)
    metrics.append(session, job.id, lease.fence, metrics.as_columns(steps))
    if steps:
        last = steps[-1]
        job.step = last.step
        job.tokens_seen = last.num_tokens
        job.tokens_per_second = last.tokens_per_second
        job.progress_at = database_now(session)
    job.eta_seconds = eta_seconds
    job.version += 1


def record_evaluation(session: Session, lease: Lease, event: EvaluationFinished) -> None:
    """Keep a measurement; one that a lost execution had made before is replaced."""
    job = guard(session, lease)
    measured = Measurement.model_validate(event.model_dump(exclude={"type", "at", "num_tokens"}))
    store_measurement(session, job, measured, num_tokens=event.num_tokens, replace=True)
    data = event.model_dump(mode="json", exclude={"type", "at", "rows"})
    events.append(session, job, "eval.completed", data)


def store_measurement(
    session: Session, job: Job, measured: Measurement, *, num_tokens: int, replace: bool
) -> None:
    """Keep a measurement of the increment in progress; `replace` one that stands already."""
    identity = {
        "job_id": job.id,
        "increment": measured.increment,
        "stage": measured.stage,
        "suite": measured.suite,
        "metric": measured.metric,
    }
    values = {
        "fence": job.fence,
        "num_tokens": num_tokens,
        "value": finite(measured.value),
        "stderr": finite(measured.stderr),
        "num_samples": measured.num_samples,
        "protocol": dict(measured.protocol),
        "rows": measured.rows,
        "created_at": database_now(session),
    }
    fresh = {"id": new_id("eval"), "checkpoint_id": None, **identity, **values}
    if not insert_unless_exists(session, Evaluation, fresh) and replace:
        session.execute(
            update(Evaluation).filter_by(**identity, checkpoint_id=None).values(**values),
            execution_options={"synchronize_session": False},
        )
