"""Turns what a child reports into rows, each under the lease.

Optimizer steps come many times a second and go into the database once a second; everything else
goes at once, after the steps before it.
"""

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from pruning.events import (
    EvaluationFinished,
    Event,
    IncrementFinished,
    MixtureChanged,
    PhaseChanged,
    PruneFinished,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    RunWarning,
    StepFinished,
    TextMeasured,
    TextRead,
)
from registry import progress, tracing
from registry.leases import Lease
from worker.estimate import TimeLeft
from worker.workplace import Workplace

FLUSH_SECONDS = 1.0
_MAX_BATCH = 1000
_NAMES = {
    MixtureChanged: "mixture.changed",
    TextRead: "text.read",
    TextMeasured: "text.measured",
}
"""Of events that are stored as they come."""


class Recorder:
    """Records the events of one attempt.

    `finished`, `stopped` and `failed` hold what the child said of its own end.
    """

    def __init__(self, workplace: Workplace, lease: Lease, *, given_up: Callable[[], bool]) -> None:
        self.finished: RunFinished | None = None
        self.stopped: RunStopped | None = None
        self.failed: RunFailed | None = None
        self._workplace = workplace
        self._lease = lease
        self._given_up = given_up
        self._time_left = TimeLeft()
        self._steps: list[StepFinished] = []
        self._flushed_at = time.monotonic()
        self._increment = lease.increments_done
        self._phase: PhaseChanged | None = None

    def record(self, event: Event) -> None:
        """Take one event; `IncrementFinished` is for `worker.publish`, here it only counts.

        Raises:
            LeaseLost: it is not this lease's job any more.
        """
        self._time_left.observe(event)
        if isinstance(event, PhaseChanged | IncrementFinished | RunStopped | RunFailed):
            self._trace_phase(event)
        if isinstance(event, StepFinished):
            self._steps.append(event)
            if len(self._steps) >= _MAX_BATCH:
                self.flush()
            return
        self.flush()
        self._record_rare(event)

    def flush_if_due(self) -> None:
        """Store the steps of the last second."""
        if self._steps and time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Store the steps that are not stored yet."""
        steps, self._steps = self._steps, []
        self._flushed_at = time.monotonic()
        if steps:
            eta_seconds = self._time_left.seconds()
            self._apply(
                lambda session: progress.record_steps(
                    session, self._lease, steps, eta_seconds=eta_seconds
                )
            )

    def _record_rare(self, event: Event) -> None:
        match event:
            case RunFinished():
                self.finished = event
            case RunStopped():
                self.stopped = event
            case RunFailed():
                self.failed = event
            case PhaseChanged():
                self._record_phase(event)
            case RunWarning():
                self._append("warning", _data(event), level="warning")
            case MixtureChanged() | TextRead() | TextMeasured():
                self._append(_NAMES[type(event)], _data(event))
            case RunStarted() | PruneFinished() | EvaluationFinished():
                self._record_finding(event)

    def _record_finding(self, event: RunStarted | PruneFinished | EvaluationFinished) -> None:
        match event:
            case RunStarted():
                self._apply(lambda s: progress.record_run_started(s, self._lease, event))
            case PruneFinished():
                self._apply(lambda s: progress.record_prune(s, self._lease, event))
            case EvaluationFinished():
                self._apply(lambda s: progress.record_evaluation(s, self._lease, event))

    def _record_phase(self, event: PhaseChanged) -> None:
        if event.increment > self._increment:
            self._increment = event.increment
            self._append("increment.started", {"increment": event.increment})
        self._apply(lambda s: progress.record_phase(s, self._lease, event.phase, event.increment))

    def _trace_phase(
        self, event: PhaseChanged | IncrementFinished | RunStopped | RunFailed
    ) -> None:
        """One phase is over where the next begins, or the increment or the run ends."""
        if self._phase is not None:
            tracing.record(
                f"phase {self._phase.phase}",
                self._phase.at,
                event.at,
                job_id=self._lease.job_id,
                increment=self._phase.increment,
                fence=self._lease.fence,
            )
        self._phase = event if isinstance(event, PhaseChanged) else None

    def publishing(self, increment: int) -> None:
        """Say that what the increment left is being stored."""
        self._apply(lambda s: progress.record_phase(s, self._lease, "publishing", increment))

    def warn(self, code: str, message: str) -> None:
        """Add a warning of the worker's own."""
        self._append("warning", {"code": code, "message": message}, level="warning")

    def _append(self, event_type: str, data: dict[str, Any], *, level: str = "info") -> None:
        self._apply(lambda s: progress.record_event(s, self._lease, event_type, data, level=level))

    def _apply(self, write: Callable[[Session], None]) -> None:
        self._workplace.apply(write, given_up=self._given_up)


def _data(event: Event) -> dict[str, Any]:
    return event.model_dump(mode="json", exclude={"type", "at"})
