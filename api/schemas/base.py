"""What every answer is built on, and times as they are written."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
)


def _rfc3339(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str, when_used="json")]


def _as_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("no such time in UTC") from None


def _written_out(value: object) -> object:
    if not isinstance(value, datetime) and not _RFC3339.match(str(value)):
        raise ValueError("write it as 2026-01-31T12:00:00Z")
    return value


# Pydantic also reads bare numbers as seconds since 1970.
UtcTime = Annotated[AwareDatetime, AfterValidator(_as_utc), BeforeValidator(_written_out)]
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d")


StoredJson = dict[str, Any]
"""JSON that the database returned: looking through every value of it again finds nothing."""


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
