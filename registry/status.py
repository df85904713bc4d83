"""The job state machine as data: what may follow what, and who may ask for it. Pure.

`TRANSITIONS` is the only place that says so; `registry.jobs.transition` enforces it,
`allowed_actions` reads it, and the tests and the documentation are generated from it.
"""

from collections.abc import Mapping
from enum import StrEnum


class JobStatus(StrEnum):
    """What can be done with a job. What a running job is *doing* is its phase."""

    QUEUED = "queued"  # waits for a worker, or for `not_before`
    RUNNING = "running"  # a worker holds the lease
    PAUSING = "pausing"  # asked to pause; the worker stops at the next boundary
    PAUSED = "paused"  # nobody holds it; `resume` queues it again
    CANCELLING = "cancelling"  # asked to cancel; the worker stops at once
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobAction(StrEnum):
    """What a user may ask of a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    DELETE = "delete"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
LEASED = frozenset({JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING})

TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset(
        {JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED, JobStatus.FAILED}
    ),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.QUEUED,  # slice ended, retryable error, or the lease expired
            JobStatus.PAUSING,
            JobStatus.PAUSED,  # storage full
            JobStatus.CANCELLING,
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
        }
    ),
    JobStatus.PAUSING: frozenset(
        {JobStatus.PAUSED, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED}
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),  # retry
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),  # retry
}

ACTIONS: Mapping[JobAction, frozenset[JobStatus]] = {
    JobAction.CANCEL: frozenset(
        {JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.PAUSED}
    ),
    JobAction.PAUSE: frozenset({JobStatus.QUEUED, JobStatus.RUNNING}),
    JobAction.RESUME: frozenset({JobStatus.PAUSED}),
    JobAction.RETRY: frozenset({JobStatus.FAILED, JobStatus.CANCELLED}),
    JobAction.DELETE: TERMINAL,
}


def may_become(status: JobStatus, following: JobStatus) -> bool:
    """Whether the table allows `status` -> `following`."""
    return following in TRANSITIONS[status]


def allowed_actions(status: JobStatus) -> list[JobAction]:
    """What a user may ask of a job in this status, in a fixed order."""
    return [action for action in JobAction if status in ACTIONS[action]]
