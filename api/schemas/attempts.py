"""The attempts of a job."""

from typing import Literal

from pydantic import Field

from api.schemas.base import Read, Timestamp


class AttemptRead(Read):
    """One time that a worker took a job, and how it ended."""

    object: Literal["prune.job.attempt"] = Field("prune.job.attempt", description="The kind.")
    job: str = Field(description="Id of the job.")
    attempt: int = Field(description="Counted from 1.")
    worker: str = Field(description="Who took it.")
    started_at: Timestamp = Field(description="When it was taken.")
    ended_at: Timestamp | None = Field(description="When it was given back, or lost.")
    end_cause: str | None = Field(
        description="Such as `finished`, `slice`, `pause`, `error`, `lease_expired`."
    )
    exit_code: int | None = Field(description="Of the run's process; negative for a signal.")
    message: str | None = Field(description="What went wrong, in words.")
    log_bytes: int | None = Field(description="Length of its stored log.")
    log_url: str = Field(description="Where the log can be read.")


class AttemptList(Read):
    """The attempts of a job, oldest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[AttemptRead] = Field(description="The attempts.")
    has_more: Literal[False] = Field(False, description="The list is whole.")
