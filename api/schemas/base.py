"""What every answer is built on."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PlainSerializer


def _rfc3339(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str, when_used="json")]


class Read(BaseModel):
    """Base of what is answered."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class ProblemRead(Read):
    """An error, RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Names the kind of problem.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was wrong this time.")
    instance: str = Field(description="The path asked for.")
    code: str = Field(description="The kind of problem, for programs.")
    param: str | None = Field(description="The first field at fault.")
    errors: list[dict[str, JsonValue]] = Field(description="Every field at fault.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    request_id: str = Field(description="Names this request in the server's log.")
