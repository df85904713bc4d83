"""Requests about jobs: made, read, steered, followed."""

from collections.abc import Mapping, Sequence
from typing import Any

from espalier.calls import Call, matching, nothing, once, reading
from espalier.resources import Estimate, EventPage, Job, JobPage, Metrics

EVENT_PAGE = 100
_read_job = reading(Job)


def submit(request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Call[Job]:
    """Create a job. `{"model": …, "target": …, "data": …}` is enough."""
    return Call(
        method="POST",
        path="/v1/jobs",
        read=_read_job,
        json=dict(request),
        headers=once(idempotency_key),
    )


def estimate(request: Mapping[str, Any]) -> Call[Estimate]:
    """What the same request to `submit` would lead to; nothing is stored."""
    return Call(method="POST", path="/v1/estimates", read=reading(Estimate), json=dict(request))


def get(job_id: str) -> Call[Job]:
    """The job as it is now."""
    return Call(method="GET", path=f"/v1/jobs/{job_id}", read=_read_job)


def get_after(job_id: str, *, version: int, wait_seconds: float) -> Call[Job]:
    """The job once it is at another version, or as it is after so long."""
    params = {"wait": wait_seconds, "if_version": version}
    return Call(method="GET", path=f"/v1/jobs/{job_id}", read=_read_job, params=params)


def list_jobs(
    *,
    limit: int = 20,
    after: str | None = None,
    status: str | None = None,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Call[JobPage]:
    """A page of jobs, newest first; `after` is the id of the last job of the page before.

    `name` is a part of their name, `metadata` the labels they have.
    """
    labels = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
    params = {"limit": limit, "after": after, "status": status, "q": name, **labels}
    return Call(method="GET", path="/v1/jobs", read=reading(JobPage), params=params)


def cancel(job_id: str) -> Call[Job]:
    """Stop the job; its checkpoints stay."""
    return _act(job_id, "cancel")


def pause(job_id: str) -> Call[Job]:
    """Stop the job at its next boundary, so that `resume` goes on from there."""
    return _act(job_id, "pause")


def resume(job_id: str) -> Call[Job]:
    """Queue a paused job again."""
    return _act(job_id, "resume")


def retry(job_id: str) -> Call[Job]:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
    return _act(job_id, "retry")


def _act(job_id: str, action: str) -> Call[Job]:
    return Call(method="POST", path=f"/v1/jobs/{job_id}/{action}", read=_read_job)


def update(job_id: str, changes: Mapping[str, Any], *, version: int | None = None) -> Call[Job]:
    """Change name, metadata, priority or limits; with `version` only if it is still that.

    Raises:
        Conflict: the job has changed since.
    """
    return Call(
        method="PATCH",
        path=f"/v1/jobs/{job_id}",
        read=_read_job,
        json=dict(changes),
        headers=matching(version),
    )


def delete(job_id: str) -> Call[None]:
    """Remove an ended job and what it published."""
    return Call(method="DELETE", path=f"/v1/jobs/{job_id}", read=nothing)


def events(job_id: str, *, after: int = 0) -> Call[EventPage]:
    """A page of events with `seq` above `after`, oldest first."""
    params = {"after": after, "limit": EVENT_PAGE}
    path = f"/v1/jobs/{job_id}/events"
    return Call(method="GET", path=path, read=reading(EventPage), params=params)


def metrics(job_id: str, *, keys: Sequence[str] = ("loss",), from_step: int = 0) -> Call[Metrics]:
    """Training curves from an optimizer step on; long ones come thinned out."""
    params = {"keys": list(keys), "from_step": from_step}
    path = f"/v1/jobs/{job_id}/metrics"
    return Call(method="GET", path=path, read=reading(Metrics), params=params)


def logs(job_id: str, *, attempt: int | None = None, tail: int | None = None) -> Call[str]:
    """What the run printed in an attempt, by default the last; `tail` gives its last lines."""
    params = {"attempt": attempt, "tail": tail}
    path = f"/v1/jobs/{job_id}/logs"
    return Call(method="GET", path=path, read=lambda response: response.text, params=params)
