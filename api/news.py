"""What a stream of a job has to tell next, read and written out once for all who are told it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from fastapi.sse import format_sse_event
from pydantic_core import to_json

from api.representations import read_event
from api.watching import Mark, mark_of
from registry import events, job_rows, metrics
from registry.column_types import finite
from registry.db import SessionFactory
from registry.errors import NotFound
from registry.status import TERMINAL
from registry.tenancy import reading_of

_BATCH = 100


class Place(NamedTuple):
    """How far a stream has come: the last event it has told, and the last step."""

    seq: int
    step: int


@dataclass(frozen=True)
class News:
    """What follows a place, as it is sent, and where the job stands: None if nothing follows."""

    written: bytes
    place: Place
    mark: Mark | None

    @property
    def has_more(self) -> bool:
        """Whether more is there to be told at once."""
        return self.mark is not None and self.place.seq < self.mark.last_event_seq


def read_news(sessions: SessionFactory, tenant_id: str, job_id: str, place: Place) -> News:
    """The events after `place`, and the newest step where one was taken since."""
    with reading_of(sessions, tenant_id) as session:
        try:
            job = job_rows.look(session, tenant_id, job_id)
        except NotFound:
            return News(b"", place, None)
        rows = events.list_after(session, job_id, place.seq, _BATCH)
        written = [
            format_sse_event(
                data_str=read_event(row).model_dump_json(), event=row.type, id=str(row.seq)
            )
            for row in rows
        ]
        if job.step > place.step:
            point = _latest_step(metrics.columns(session, job_id, from_step=place.step + 1))
            if point is not None:
                written.append(format_sse_event(data_str=to_json(point).decode(), event="metrics"))
    reached = Place(seq=rows[-1].seq if rows else place.seq, step=max(job.step, place.step))
    ended = job.status in TERMINAL and reached.seq >= job.last_event_seq
    return News(b"".join(written), reached, None if ended else mark_of(job))


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
