"""What a job reports while it goes: events, as pages and as a stream, curves and widths."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.deps import JobsReader, ReadSession
from api.news import Place, read_news
from api.openapi import problems
from api.queries import MAX_POINTS
from api.representations import read_event, read_widths
from api.schemas.progress import EventPage, Metrics, WidthsRead
from api.watching import JobWatcher
from registry import checkpoints, events, jobs, metrics
from registry.column_types import finite
from registry.db import SessionFactory
from registry.tables import Job

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["progress"])

RECONNECT_MILLISECONDS = 3000
KEEP_ALIVE_SECONDS = 15.0
# Neither a cache nor nginx, which would wait for more.
_NOT_HELD_BACK = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MetricKey = Literal[
    "num_tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "increment"
]
_SENT = {
    "type": "object",
    "description": "One server-sent event.",
    "properties": {
        "event": {"type": "string", "description": "The event's type, `metrics`, or `bye`."},
        "id": {
            "type": "string",
            "description": "The event's `seq`; `metrics` and `bye` have none.",
        },
        "data": {"type": "string", "description": "JSON: the event as its page has it."},
    },
    "required": ["event", "data"],
}
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


class EventStream(StreamingResponse):
    """Server-sent events, already written: FastAPI's own writes each anew for every reader."""

    media_type = "text/event-stream"


def known_job(job_id: str, who: JobsReader, session: ReadSession) -> Job:
    """The job, found before the stream begins: once it has, no error can be answered."""
    return jobs.get(session, who.tenant_id, job_id)


@router.get(
    "/stream",
    response_class=EventStream,
    summary="Stream events",
    responses={
        200: {"content": {"text/event-stream": {"schema": _SENT}}},
        **problems(401, 403, 404, 422),
    },
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
) -> Response:
    """Every event of a job as it happens, each once, and `metrics` with the latest step between.

    Ends after the job has. A slow reader is sent the rows later: nothing waits in memory.
    """
    place = Place(seq=max(after, _sequence(last_event_id)), step=job.step)
    told = _telling(request, job.tenant_id, job.id, place)
    return EventStream(told, headers=_NOT_HELD_BACK)


async def _telling(
    request: Request, tenant_id: str, job_id: str, place: Place
) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RECONNECT_MILLISECONDS)
    sessions: SessionFactory = request.app.state.sessions
    watcher: JobWatcher = request.app.state.watcher
    while not request.app.state.stopping.is_set():
        read = partial(read_news, sessions, tenant_id, job_id, place)
        news = await watcher.shared((job_id, place), read)
        place = news.place
        if news.written:
            yield news.written
        if news.mark is None:
            return
        while not news.has_more and not await watcher.wait(job_id, news.mark, KEEP_ALIVE_SECONDS):
            yield KEEPALIVE_COMMENT
    yield format_sse_event(event="bye", data_str="{}")


def _sequence(last_event_id: str | None) -> int:
    digits = (last_event_id or "").strip()
    return min(int(digits), _MAX_SEQ) if digits.isascii() and digits.isdigit() else 0


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
