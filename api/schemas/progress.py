"""What a job reports while it goes."""

from typing import Literal

from pydantic import Field

from api.schemas.base import Read, StoredJson, Timestamp
from pruning.events import LayerWidths


class EventRead(Read):
    """One thing that happened to a job."""

    id: str = Field(description="`evt_` and 32 hexadecimal digits.")
    object: Literal["prune.job.event"] = Field("prune.job.event", description="The kind.")
    job: str = Field(description="Id of the job.")
    seq: int = Field(description="Gap-free number within the job, from 1; the cursor.")
    type: str = Field(description="Such as `job.started`, `increment.started`, `eval.completed`.")
    level: Literal["info", "warning", "error"] = Field(description="How much it matters.")
    data: StoredJson = Field(description="Details, by type.")
    created_at: Timestamp = Field(description="When it was recorded.")


class EventPage(Read):
    """One page of events, ascending."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[EventRead] = Field(description="The events.")
    has_more: bool = Field(description="Whether a page follows.")
    last_seq: int | None = Field(description="Pass it as `after` to get the next page.")


class Metrics(Read):
    """Training curves as columns, down-sampled to at most `max_points`."""

    object: Literal["prune.job.metrics"] = Field("prune.job.metrics", description="The kind.")
    job: str = Field(description="Id of the job.")
    step: list[int] = Field(description="Optimizer steps: the row index of every column.")
    columns: dict[str, list[float | None]] = Field(
        description="One list per key, as long as `step`; null where a value is not finite."
    )
    total_points: int = Field(description="Points stored before down-sampling.")


class WidthsRead(Read):
    """Layer widths over the increments: the numbers of the dashboard's heatmap."""

    object: Literal["prune.job.widths"] = Field("prune.job.widths", description="The kind.")
    job: str = Field(description="Id of the job.")
    increments: list[int] = Field(description="0 is the base model.")
    params: list[int | None] = Field(description="Parameters after each of `increments`.")
    layers: list[list[LayerWidths]] = Field(
        description="`layers[i][l]`: sizes of decoder layer `l` after `increments[i]`."
    )
