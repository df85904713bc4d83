"""Webhooks and their deliveries."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.base import Read, StoredJson, Timestamp

WebhookEvent = Literal[
    "job.created",
    "job.started",
    "job.retrying",
    "job.paused",
    "job.resumed",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "checkpoint.created",
    "eval.completed",
]
Url = Annotated[
    str,
    Field(
        min_length=8,
        max_length=2048,
        pattern=r"^https?://[!-~]+$",
        description="An https:// address that is reachable for everyone.",
    ),
]
Events = Annotated[
    list[WebhookEvent],
    Field(min_length=1, max_length=16, description="What it wants to hear of."),
]


class WebhookCreate(BaseModel):
    """A webhook to add."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Url
    events: Events


class WebhookUpdate(BaseModel):
    """What shall change; what is absent stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Url | None = None
    events: Events | None = None
    status: Literal["enabled", "disabled"] | None = Field(
        None, description="A disabled webhook is not called."
    )


class SecretRotate(BaseModel):
    """How to replace the secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlap_s: int = Field(
        86_400, ge=0, le=604_800, description="Seconds for which the old secret signs too."
    )


class WebhookRead(Read):
    """Where events are sent, signed by Standard Webhooks."""

    id: str = Field(description="`wh_` and 32 hexadecimal digits.")
    object: Literal["webhook"] = Field("webhook", description="Always `webhook`.")
    job: str | None = Field(description="The one job it hears of; null: all jobs of the tenant.")
    url: str = Field(description="The address that is called.")
    events: list[str] = Field(description="What it hears of.")
    status: Literal["enabled", "disabled"] = Field(description="Whether it is called.")
    status_reason: str | None = Field(description="Why it is disabled, when not by you.")
    created_at: Timestamp = Field(description="When it was added.")


class WebhookSecretRead(WebhookRead):
    """A webhook with its secret."""

    secret: str | None = Field(
        description="`whsec_…`, to verify signatures with; shown this once and not stored."
    )


class WebhookList(Read):
    """All webhooks of the tenant, oldest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[WebhookRead] = Field(description="The webhooks.")
    has_more: Literal[False] = Field(False, description="The list is whole.")


class DeliveryRead(Read):
    """One message to one webhook."""

    id: str = Field(description="`dlv_` and 32 hexadecimal digits; the header `webhook-id`.")
    object: Literal["webhook.delivery"] = Field("webhook.delivery", description="The kind.")
    webhook: str = Field(description="Id of the webhook.")
    event_type: str = Field(description="What it tells of.")
    payload: StoredJson = Field(description="The body that is sent.")
    status: Literal["pending", "delivered", "failed"] = Field(description="How it stands.")
    attempts: int = Field(description="How often it was sent.")
    status_code: int | None = Field(description="What the last attempt was answered.")
    error: str | None = Field(description="Why the last attempt failed.")
    next_at: Timestamp | None = Field(description="When it is sent next.")
    created_at: Timestamp = Field(description="When the event happened.")
    ended_at: Timestamp | None = Field(description="When it was delivered, or given up.")


class DeliveryPage(Read):
    """One page of deliveries, newest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[DeliveryRead] = Field(description="The deliveries.")
    has_more: bool = Field(description="Whether a page follows.")
    last_id: str | None = Field(description="Pass it as `after` to get the next page.")
