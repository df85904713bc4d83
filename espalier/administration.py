"""Keys, usage, credentials, webhooks and the audit log, as the server sends them."""

from datetime import datetime
from typing import Any

from pydantic import Field

from espalier.resources import Resource


class ApiKey(Resource):
    """An API key; `secret` is known only right after it was made."""

    id: str
    name: str | None = None
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    secret: str | None = None


class ApiKeyPage(Resource):
    """Every API key of a tenant, oldest first."""

    data: tuple[ApiKey, ...]


class Usage(Resource):
    """What was used in a time, and is used now; a quota that is None does not limit."""

    since: datetime
    until: datetime
    jobs: dict[str, int]
    tokens: int
    worker_seconds: float
    queued_now: int
    running_now: int
    storage_bytes_now: int
    quotas: dict[str, int | None] = Field(default_factory=dict)


class Credential(Resource):
    """A stored credential; its secret is never sent back."""

    id: str
    name: str | None = None
    kind: str
    created_at: datetime


class CredentialPage(Resource):
    """Every credential of a tenant, oldest first."""

    data: tuple[Credential, ...]


class Webhook(Resource):
    """Where events are sent; `secret` is known only right after it was made."""

    id: str
    job: str | None = None
    url: str
    events: tuple[str, ...]
    status: str
    status_reason: str | None = None
    created_at: datetime
    secret: str | None = None


class WebhookPage(Resource):
    """Every webhook of a tenant, oldest first."""

    data: tuple[Webhook, ...]


class Delivery(Resource):
    """One message to one webhook."""

    id: str
    webhook: str
    event_type: str
    payload: dict[str, Any] = Field(default_factory=dict)
    status: str
    attempts: int
    status_code: int | None = None
    error: str | None = None
    next_at: datetime | None = None
    created_at: datetime
    ended_at: datetime | None = None


class DeliveryPage(Resource):
    """One page of deliveries, newest first."""

    data: tuple[Delivery, ...]
    has_more: bool = False
    last_id: str | None = None


class AuditEntry(Resource):
    """A request that may have changed something; each entry holds the hash of the one before."""

    id: str
    seq: int
    key: str | None = None
    action: str
    path: str
    status: int
    request_id: str
    address: str | None = None
    created_at: datetime
    hash: str


class AuditPage(Resource):
    """One page of the audit log, newest first."""

    data: tuple[AuditEntry, ...]
    has_more: bool = False
    last_seq: int | None = None


class AuditVerification(Resource):
    """Whether the chain of hashes is whole, and where it breaks."""

    valid: bool
    entries: int
    broken_at: int | None = None
    head: str | None = None
