"""API keys, usage and quotas."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.base import Read, Timestamp, UtcTime

Scope = Literal[
    "jobs:read",
    "jobs:write",
    "jobs:delete",
    "ckpt:read",
    "files:read",
    "files:write",
    "models:read",
    "models:write",
    "admin",
]


class ApiKeyCreate(BaseModel):
    """A key to make."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(None, max_length=100, description="A note to tell keys apart.")
    scopes: list[Scope] = Field(
        min_length=1, max_length=16, description="What it may do; `admin` may do everything."
    )
    expires_at: UtcTime | None = Field(None, description="When it stops working.")


class ApiKeyRotate(BaseModel):
    """How to replace a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlap_s: int = Field(
        0, ge=0, le=604_800, description="Seconds for which the old secret still works."
    )


class ApiKeyRead(Read):
    """An API key, without its secret."""

    id: str = Field(description="`key_` and 32 hexadecimal digits.")
    object: Literal["api_key"] = Field("api_key", description="Always `api_key`.")
    name: str | None = Field(description="The note given at creation.")
    prefix: str = Field(description="How its secret begins: `pk_` and this.")
    scopes: list[str] = Field(description="What it may do.")
    created_at: Timestamp = Field(description="When it was made.")
    expires_at: Timestamp | None = Field(description="When it stops working.")
    revoked_at: Timestamp | None = Field(description="When it was revoked.")
    last_used_at: Timestamp | None = Field(description="When it was last used, to the minute.")


class ApiKeySecretRead(ApiKeyRead):
    """A new API key, with its secret."""

    secret: str | None = Field(
        description="What to send as `Authorization: Bearer …`; shown this once and not stored."
    )


class ApiKeyList(Read):
    """All API keys of the tenant, oldest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[ApiKeyRead] = Field(description="The keys, revoked ones included.")
    has_more: Literal[False] = Field(False, description="The list is whole.")


class QuotasRead(Read):
    """What the tenant may use at once; null is not limited."""

    max_queued: int | None = Field(description="Jobs that wait, paused ones included.")
    max_running: int | None = Field(description="Jobs that workers hold.")
    storage_bytes: int | None = Field(description="Bytes of checkpoints and files.")


class UsageRead(Read):
    """What was used over a time, and what is used now."""

    object: Literal["usage"] = Field("usage", description="Always `usage`.")
    since: Timestamp = Field(description="Jobs created from here on are counted.")
    until: Timestamp = Field(description="And before this.")
    jobs: dict[str, int] = Field(description="Jobs created in that time, by present status.")
    tokens: int = Field(description="Training tokens of these jobs.")
    worker_seconds: float = Field(description="How long workers held these jobs.")
    queued_now: int = Field(description="Jobs that wait now.")
    running_now: int = Field(description="Jobs that workers hold now.")
    storage_bytes_now: int = Field(description="Bytes stored now.")
    quotas: QuotasRead = Field(description="The limits.")
