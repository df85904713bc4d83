"""What was found, and where a checkpoint comes from."""

from typing import Literal

from pydantic import Field, JsonValue

from api.schemas.base import Read, Timestamp


class HitRead(Read):
    """Something found."""

    kind: Literal["job", "checkpoint", "model"] = Field(description="What it is.")
    id: str = Field(description="Its id.")
    name: str = Field(description="What it is called.")
    detail: str = Field(description="What else there is to say.")
    url: str = Field(description="Where to read it.")
    created_at: Timestamp = Field(description="When it was made.")


class SearchRead(Read):
    """What was found, newest first."""

    object: Literal["search"] = Field("search", description="The kind.")
    data: list[HitRead] = Field(description="At most as many of each kind as asked for.")


class OriginRead(Read):
    """Everything that made a checkpoint what it is, as its manifest records it."""

    object: Literal["checkpoint.origin"] = Field("checkpoint.origin", description="The kind.")
    checkpoint: str = Field(description="Its id.")
    job: str = Field(description="The job that made it.")
    parent: str | None = Field(description="The checkpoint before it.")
    base_model: str = Field(description="The model that was pruned.")
    base_revision: str | None = Field(description="Its commit on the hub; null for a path.")
    data_fingerprint: str = Field(description="Digest of the text it was trained on.")
    versions: dict[str, str] = Field(description="Of this code and of what it runs on.")
    tokens: int = Field(description="Training tokens seen.")
    device: str | None = Field(description="The kind of device.")
    device_seconds: float = Field(description="How long workers held the job until now.")
    energy_joules: float | None = Field(
        description="What its devices have used until now; null where none of them says."
    )
    plan: dict[str, JsonValue] = Field(
        description="By layer and axis, which groups of the base model it kept: where each channel "
        "and head came from."
    )
