"""All tables. Rows only: what may happen to them is in the module named after each.

`Job` is the one mutable row; its status changes only through `registry.jobs.transition`, its lease
only through `registry.leases`. Everything below it is append-only.
"""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from registry.column_types import Id, Json, Real, Sha256, UtcDateTime
from registry.status import LEASED, JobStatus

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
_LEASED_SQL = ", ".join(f"'{status}'" for status in sorted(LEASED))
IS_LEASED = f"status IN ({_LEASED_SQL})"
IS_QUEUED = "status = 'queued'"
"""Conditions of partial indexes: SQLite uses one only for a query that says the very same."""


class Base(DeclarativeBase):
    """Base of all rows."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: Json,
        list[Any]: Json,
        float: Real,
        int: BigInteger(),
    }


def _partial(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


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


class Job(Base):
    """What a user asked for, and how far it has come.

    `recipe` is the resolved long form that runs, `spec` the request as it was written, `resolved`
    what the run found (revision, fingerprint, versions), `estimate` what was foretold of it.
    `fence` counts leases ever granted or taken away: a write that carries an older one changes
    nothing.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str | None] = mapped_column(String(200))
    model: Mapped[str] = mapped_column(Text)
    spec: Mapped[dict[str, Any]]
    recipe: Mapped[dict[str, Any]]
    resolved: Mapped[dict[str, Any] | None]
    job_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    priority: Mapped[int] = mapped_column(default=0)
    queue: Mapped[str] = mapped_column(String(64), default="default")
    reserved_bytes: Mapped[int] = mapped_column(default=0, server_default="0")
    max_attempts: Mapped[int]
    max_runtime_seconds: Mapped[float | None]

    status: Mapped[JobStatus] = mapped_column(
        Enum(
            JobStatus,
            name="status",
            native_enum=False,
            create_constraint=True,
            length=16,
            values_callable=lambda statuses: [status.value for status in statuses],
        )
    )
    phase: Mapped[str | None] = mapped_column(String(32))
    status_reason: Mapped[str | None] = mapped_column(Text)
    outcome: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    estimate: Mapped[dict[str, Any] | None]
    version: Mapped[int] = mapped_column(default=1)
    last_event_seq: Mapped[int] = mapped_column(default=0)

    fence: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime]
    deadline_at: Mapped[datetime | None]
    pause_mode: Mapped[str | None] = mapped_column(String(16))
    hinted_at: Mapped[datetime | None]
    num_hints: Mapped[int] = mapped_column(default=0)

    increments_done: Mapped[int] = mapped_column(default=0)
    increments_planned: Mapped[int | None]
    head_checkpoint_id: Mapped[str | None] = mapped_column(Id)
    best_checkpoint_id: Mapped[str | None] = mapped_column(Id)
    params_start: Mapped[int | None]
    params_now: Mapped[int | None]
    params_target: Mapped[int | None]
    step: Mapped[int] = mapped_column(default=0)
    tokens_seen: Mapped[int] = mapped_column(default=0)
    tokens_planned: Mapped[int | None]
    tokens_per_second: Mapped[float | None]
    eta_seconds: Mapped[float | None]
    progress_at: Mapped[datetime | None]

    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    attempts: Mapped[list["JobAttempt"]] = relationship(
        lazy="raise", order_by="JobAttempt.fence", viewonly=True
    )

    __table_args__ = (
        CheckConstraint(
            f"({IS_LEASED}) = (lease_owner IS NOT NULL) "
            "AND (lease_owner IS NULL) = (lease_until IS NULL)",
            name="lease_matches_status",
        ),
        CheckConstraint("increments_done >= 0 AND failures >= 0 AND fence >= 0", name="counts"),
        Index("ix_jobs_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
        _partial("ix_jobs_waiting", "queue", "priority", "queued_at", where=IS_QUEUED),
        _partial("ix_jobs_leased", "lease_until", where=IS_LEASED),
        _partial("ix_jobs_deadline", "deadline_at", where="finished_at IS NULL"),
    )


class JobAttempt(Base):
    """One lease of a job, and how it ended; its log is stored after that."""

    __tablename__ = "job_attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    worker_id: Mapped[str] = mapped_column(String(200))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    end_cause: Mapped[str | None] = mapped_column(String(32))
    exit_code: Mapped[int | None]
    message: Mapped[str | None] = mapped_column(Text)
    log_tail: Mapped[str | None] = mapped_column(Text)
    log_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    log_bytes: Mapped[int | None]
    energy_joules: Mapped[float | None]


class Increment(Base):
    """The history of commits: each increment once, in order, under a fence that never falls."""

    __tablename__ = "increments"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    idx: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fence: Mapped[int]
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    parent_checkpoint_id: Mapped[str | None] = mapped_column(Id)
    manifest_sha256: Mapped[str] = mapped_column(Sha256)
    params_before: Mapped[int]
    params_after: Mapped[int]
    widths: Mapped[list[Any]]
    step: Mapped[int]
    num_tokens: Mapped[int]
    committed_at: Mapped[datetime]


class Checkpoint(Base):
    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    increment: Mapped[int]
    fence: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    step: Mapped[int]
    num_tokens: Mapped[int]
    params: Mapped[int]
    size_bytes: Mapped[int]
    dtype: Mapped[str] = mapped_column(String(16))
    widths: Mapped[list[Any]]
    manifest_sha256: Mapped[str] = mapped_column(Sha256)
    final: Mapped[bool] = mapped_column(default=False)
    resumable: Mapped[bool]
    status: Mapped[str] = mapped_column(String(16), default="committed")
    pinned: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]

    files: Mapped[list["CheckpointFile"]] = relationship(
        lazy="raise", order_by="CheckpointFile.path", viewonly=True
    )

    __table_args__ = (
        UniqueConstraint("job_id", "increment"),
        CheckConstraint("status IN ('committed', 'deleted')", name="status"),
    )


class Blob(Base):
    """Bytes in the artifact store, named by their sha256."""

    __tablename__ = "blobs"

    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True)
    size_bytes: Mapped[int]
    status: Mapped[str] = mapped_column(String(16), default="stored")
    created_at: Mapped[datetime]

    __table_args__ = (CheckConstraint("status IN ('stored', 'deleting')", name="status"),)


class UploadedFile(Base):
    """Text a user sent; its bytes are in the artifact store once it is ready."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16), default="uploading")
    size_bytes: Mapped[int | None]
    declared_sha256: Mapped[str | None] = mapped_column(Sha256)
    sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("status IN ('uploading', 'ready', 'deleted')", name="status"),
        Index("ix_files_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
    )


class JobFile(Base):
    """A file that a job reads."""

    __tablename__ = "job_files"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), primary_key=True, index=True)


class CheckpointFile(Base):
    __tablename__ = "checkpoint_files"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    size_bytes: Mapped[int]


class Evaluation(Base):
    """One measured number, null where it was not finite.

    `checkpoint_id` is null for the base model, and until the commit. `rows` are the outcomes it is
    the mean of, by `pruning.paired`.
    """

    __tablename__ = "evaluations"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    fence: Mapped[int]
    increment: Mapped[int]
    stage: Mapped[str] = mapped_column(String(16))
    num_tokens: Mapped[int]
    suite: Mapped[str] = mapped_column(String(64))
    metric: Mapped[str] = mapped_column(String(64))
    value: Mapped[float | None]
    stderr: Mapped[float | None]
    num_samples: Mapped[int | None]
    protocol: Mapped[dict[str, Any]]
    rows: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("job_id", "increment", "stage", "suite", "metric"),)


class MetricPoint(Base):
    """A batch of consecutive optimizer steps under one lease: `columns` holds one list per key."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    first_step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last_step: Mapped[int]
    columns: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class JobEvent(Base):
    """What happened to a job, numbered 1, 2, 3, … without a gap."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(Id, unique=True)
    type: Mapped[str] = mapped_column(String(64))
    level: Mapped[str] = mapped_column(String(8), default="info")
    data: Mapped[dict[str, Any]]
    fence: Mapped[int]
    created_at: Mapped[datetime]


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
        _partial("ix_outbox_unsent", "available_at", where="sent_at IS NULL"),
        _partial("ix_outbox_sent", "sent_at", where="sent_at IS NOT NULL"),
    )


class IdempotencyKey(Base):
    """A request that was, or is being, answered; `status_code` is null until it was."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Sha256)
    status_code: Mapped[int | None]
    response: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(index=True)


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
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("status IN ('online', 'draining', 'stopped', 'lost')", name="status"),
    )


class RegisteredModel(Base):
    """A name for a line of versions."""

    __tablename__ = "registered_models"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(100))
    description: Mapped[str | None] = mapped_column(Text)
    last_version: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("tenant_id", "name"),)


class ModelVersion(Base):
    """A checkpoint under a number that never changes; the checkpoint is pinned."""

    __tablename__ = "model_versions"

    model_id: Mapped[str] = mapped_column(ForeignKey("registered_models.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    description: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]


class ModelAlias(Base):
    """A name that moves from version to version; `revision` counts its moves."""

    __tablename__ = "model_aliases"

    model_id: Mapped[str] = mapped_column(Id, primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    revision: Mapped[int] = mapped_column(default=1)
    updated_at: Mapped[datetime]

    __table_args__ = (
        ForeignKeyConstraint(
            ["model_id", "version"], ["model_versions.model_id", "model_versions.version"]
        ),
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
        _partial("ix_webhook_deliveries_due", "next_at", where="status = 'pending'"),
    )


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
        _partial("ix_playground_runs_queued", "created_at", where="status = 'queued'"),
    )
