"""What a job reports while it goes: events, as pages and as a stream, curves and widths."""

import math
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.deps import JobsReader, ReadSession
from api.openapi import problems
from api.queries import MAX_POINTS
from api.representations import read_event, read_widths
from api.schemas.progress import EventPage, EventRead, Metrics, WidthsRead
from api.watching import JobWatcher, Mark, mark_of
from registry import checkpoints, events, jobs, metrics
from registry.db import SessionFactory
from registry.status import TERMINAL
from registry.tables import Job
from registry.tenancy import reading_of

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["progress"])

STREAM_BATCH = 100
RECONNECT_MILLISECONDS = 3000
MetricKey = Literal[
    "num_tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "increment"
]
_DEFAULT_KEYS: list[MetricKey] = ["num_tokens", "loss", "learning_rate", "tokens_per_second"]
_MAX_SEQ = 2**62


@router.get("/events", summary="List events", responses=problems(401, 403, 404, 422))
def list_events(
    job_id: str,
    who: JobsReader,
    session: ReadSession,
    after: Annotated[int, Query(ge=0, le=_MAX_SEQ, description="The last `seq` you have.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events per page.")] = 100,
) -> EventPage:
    """What happened to a job, ascending and without gaps."""
    jobs.get(session, who.tenant_id, job_id)
    rows = events.list_after(session, job_id, after, limit + 1)
    data = [read_event(row) for row in rows[:limit]]
    return EventPage(data=data, has_more=len(rows) > limit, last_seq=data[-1].seq if data else None)


def known_job(job_id: str, who: JobsReader, session: ReadSession) -> Job:
    """The job, found before the stream begins: once it has, no error can be answered."""
    return jobs.get(session, who.tenant_id, job_id)


@dataclass
class _Place:
    """How far a stream has come."""

    seq: int
    step: int


@router.get(
    "/stream",
    response_class=EventSourceResponse,
    summary="Stream events",
    responses=problems(401, 403, 404, 422),
)
async def stream_events(
    request: Request,
    job: Annotated[Job, Depends(known_job)],
    last_event_id: Annotated[
        str | None, Header(description="The last `id` received; every later event follows.")
    ] = None,
    after: Annotated[
        int, Query(ge=0, le=_MAX_SEQ, description="The same for a first connection.")
    ] = 0,
) -> AsyncIterable[ServerSentEvent]:
    """Every event of a job as it happens, each once, and `metrics` with the latest step between.

    Ends after the job has. A slow reader is sent the rows later: nothing waits in memory.
    """
    yield ServerSentEvent(retry=RECONNECT_MILLISECONDS)
    place = _Place(seq=max(after, _sequence(last_event_id)), step=job.step)
    sessions: SessionFactory = request.app.state.sessions
    watcher: JobWatcher = request.app.state.watcher
    while not request.app.state.stopping.is_set():
        rows, point, mark = await run_in_threadpool(_news, sessions, job, place)
        for row in rows:
            yield ServerSentEvent(raw_data=row.model_dump_json(), event=row.type, id=str(row.seq))
        if point is not None:
            yield ServerSentEvent(data=point, event="metrics")
        if mark is None:
            return
        if not rows:
            await watcher.wait(job.id, mark)
    yield ServerSentEvent(event="bye", data={})


def _sequence(last_event_id: str | None) -> int:
    digits = (last_event_id or "").strip()
    return min(int(digits), _MAX_SEQ) if digits.isascii() and digits.isdigit() else 0


def _news(
    sessions: SessionFactory, known: Job, place: _Place
) -> tuple[list[EventRead], dict[str, Any] | None, Mark | None]:
    """The events after `place` (moved on), the newest step if any, and where the job stands.

    That is None when there will be no more.
    """
    with reading_of(sessions, known.tenant_id) as session:
        job = session.get(Job, known.id)
        if job is None:
            return [], None, None
        rows = events.list_after(session, job.id, place.seq, STREAM_BATCH)
        place.seq = rows[-1].seq if rows else place.seq
        ended = job.status in TERMINAL and place.seq >= job.last_event_seq
        point = None
        if job.step > place.step:
            point = _latest_step(metrics.columns(session, job.id, from_step=place.step + 1))
            place.step = job.step
        return [read_event(row) for row in rows], point, None if ended else mark_of(job)


def _latest_step(columns: metrics.Columns) -> dict[str, Any] | None:
    if not columns["step"]:
        return None
    last = {key: values[-1] for key, values in columns.items()}
    return {
        "step": last["step"],
        "tokens_seen": last["num_tokens"],
        "train_loss": finite(last["loss"]),
        "lr": finite(last["learning_rate"]),
        "tok_s": finite(last["tokens_per_second"]),
    }


def finite(value: object) -> float | None:
    """The number, or None where JSON has no way to write it."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@router.get("/metrics", summary="Training curves", responses=problems(401, 403, 404, 422))
def job_metrics(
    job_id: str,
    who: JobsReader,
    session: ReadSession,
    keys: Annotated[
        list[MetricKey], Query(description="Columns wanted; may be repeated.")
    ] = _DEFAULT_KEYS,
    from_step: Annotated[int, Query(ge=0, le=_MAX_SEQ, description="The first step wanted.")] = 0,
    max_points: Annotated[
        int,
        Query(ge=3, le=MAX_POINTS, description="Longer curves are thinned, keeping their look."),
    ] = 1000,
) -> Metrics:
    """One list per key, one entry per optimizer step."""
    job = jobs.get(session, who.tenant_id, job_id)
    columns = metrics.columns(session, job_id, keys, from_step, max_points)
    steps = columns.pop("step")
    return Metrics(
        job=job_id,
        step=steps,
        columns={key: [finite(value) for value in values] for key, values in columns.items()},
        total_points=max(job.step - max(from_step, 1) + 1, len(steps)),
    )


@router.get("/widths", summary="Layer widths", responses=problems(401, 403, 404, 422))
def job_widths(job_id: str, who: JobsReader, session: ReadSession) -> WidthsRead:
    """The sizes of every layer after each increment."""
    job = jobs.get(session, who.tenant_id, job_id)
    return read_widths(job, checkpoints.increments(session, job_id))
