"""Following a job, without sending anything: each step says what to do next.

A script yields calls to send (and is sent their answers), pauses to take, and what the caller
waits for; the clients differ only in how they carry the steps out.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from espalier import calls_jobs
from espalier.calls import Call
from espalier.errors import JobEnded
from espalier.resources import Event, Job

LONG_POLL_SECONDS = 20.0


@dataclass(frozen=True)
class Pause:
    """Nothing is to be done for so long."""

    seconds: float


@dataclass(frozen=True)
class Moment:
    """The job, and what happened since the last look."""

    job: Job
    events: tuple[Event, ...]


Script = Generator[Call[Any] | Pause | Moment, Any, Job]


def follow(job_id: str, *, after: int, poll_seconds: float) -> Script:
    """The job and its events again and again until it has ended; the job as it ended."""
    while True:
        # Before its events: then none is missing once it has ended.
        job: Job = yield calls_jobs.get(job_id)
        events: list[Event] = []
        while page := (yield calls_jobs.events(job_id, after=after)).data:
            events += page
            after = page[-1].seq
            if len(page) < calls_jobs.EVENT_PAGE:
                break
        yield Moment(job, tuple(events))
        if job.ended:
            return job
        yield Pause(poll_seconds)


def wait(job_id: str, *, poll_seconds: float) -> Script:
    """The job once it has succeeded; between two looks the server waits, not we.

    Raises:
        JobEnded: it failed or was cancelled.
    """
    job: Job = yield calls_jobs.get(job_id)
    while not job.ended:
        seen = job.version
        job = yield calls_jobs.get_after(job_id, version=seen, wait_seconds=LONG_POLL_SECONDS)
        if job.version == seen:
            yield Pause(poll_seconds)
    if job.status != "succeeded":
        raise JobEnded(job)
    return job
