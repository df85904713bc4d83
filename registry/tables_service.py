"""Rows of tenants and their access, and of what the service does for them beside their jobs."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from registry.column_types import Id, Sha256
from registry.tables_base import Base, partial


class Tenant(Base):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    quotas: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]


class ApiKey(Base):
    """The secret itself is never stored: `hash` is its sha256, `prefix` finds the row."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str | None] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    hash: Mapped[str] = mapped_column(Sha256)
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Credential(Base):
    """A secret of a tenant for a place outside, sealed (`registry.credentials`)."""

    __tablename__ = "credentials"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str | None] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(16))
    sealed: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class AuditEntry(Base):
    """What was changed by whom: each row holds the hash of the one before it."""

    __tablename__ = "audit_log"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(Id, unique=True)
    key_id: Mapped[str | None] = mapped_column(Id)
    action: Mapped[str] = mapped_column(String(200))
    object: Mapped[str] = mapped_column(String(512))
    status_code: Mapped[int]
    request_id: Mapped[str] = mapped_column(String(64))
    address: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    previous_hash: Mapped[str] = mapped_column(Sha256)
    hash: Mapped[str] = mapped_column(Sha256)


class IdempotencyKey(Base):
    """A request that was, or is being, answered; `status_code` is null until it was."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Sha256)
    status_code: Mapped[int | None]
    response: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(index=True)


class OutboxMessage(Base):
    """A message to send after the commit that wrote this row; sent at least once."""

    __tablename__ = "outbox"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    topic: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(Id)
    payload: Mapped[dict[str, Any]]
    available_at: Mapped[datetime]
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    num_attempts: Mapped[int] = mapped_column(default=0)

    __table_args__ = (
        partial("ix_outbox_unsent", "available_at", where="sent_at IS NULL"),
        partial("ix_outbox_sent", "sent_at", where="sent_at IS NOT NULL"),
    )


class Worker(Base):
    """A worker process and when it was last heard of."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    version: Mapped[str] = mapped_column(String(64))
    queues: Mapped[list[Any]]
    status: Mapped[str] = mapped_column(String(16))
    current_job_id: Mapped[str | None] = mapped_column(Id)
    utilisation: Mapped[float | None]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("status IN ('online', 'draining', 'stopped', 'lost')", name="status"),
    )


class Webhook(Base):
    """Where a tenant wants to hear of its jobs, or of the one job that it was made with.

    `secrets` are sealed (`registry.webhooks`), the newest first; an older one signs beside it until
    it ends.
    """

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    url: Mapped[str] = mapped_column(String(2048))
    events: Mapped[list[Any]]
    secrets: Mapped[list[Any]]
    status: Mapped[str] = mapped_column(String(16), default="enabled")
    status_reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("status IN ('enabled', 'disabled', 'deleted')", name="status"),
    )


class WebhookDelivery(Base):
    """One event on its way to one webhook."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    event_id: Mapped[str | None] = mapped_column(Id)
    event_type: Mapped[str] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(16), default="pending")
    num_attempts: Mapped[int] = mapped_column(default=0)
    status_code: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    next_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
        UniqueConstraint("webhook_id", "event_id"),
        partial("ix_webhook_deliveries_due", "next_at", where="status = 'pending'"),
    )


class PlaygroundRun(Base):
    """A prompt put to a checkpoint and to the model it was pruned from, and both answers."""

    __tablename__ = "playground_runs"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    # No foreign key: a damaged checkpoint is taken back whoever has played with it.
    checkpoint_id: Mapped[str] = mapped_column(Id)
    prompt: Mapped[str] = mapped_column(Text)
    max_tokens: Mapped[int]
    status: Mapped[str] = mapped_column(String(16), default="queued")
    worker_id: Mapped[str | None] = mapped_column(String(200))
    base_text: Mapped[str | None] = mapped_column(Text)
    pruned_text: Mapped[str | None] = mapped_column(Text)
    base_seconds: Mapped[float | None]
    pruned_seconds: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("status IN ('queued', 'running', 'answered', 'failed')", name="status"),
        Index("ix_playground_runs_tenant_id_job_id", "tenant_id", "job_id"),
        partial("ix_playground_runs_queued", "created_at", where="status = 'queued'"),
    )
